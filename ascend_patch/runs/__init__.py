"""What trainings leave behind, read and compared: logs and TensorBoard folders of any run of Megatron-LM.

Nothing here needs the plugin, torch or Megatron-LM; :mod:`~ascend_patch.runs.tensorboard` imports the tensorboard
package and :mod:`~ascend_patch.runs.figure` matplotlib, when they are called.
"""
