"""`make train`: from a fresh clone to a trained small Mixtral and a picture of its loss.

Fetches real text and the real tokenizer (:mod:`~tools.train.corpus`), runs
examples/mixtral/pretrain_mixtral_tiny.sh (:mod:`~tools.train.launch`), follows Megatron's log
(:mod:`ascend_patch.runs.megatron_log`) and reports under runs/.
"""
