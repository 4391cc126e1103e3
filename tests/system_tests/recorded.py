"""A training job that also writes the samples it read. Run as a script in a Megatron job of one process:

``recorded.py FILE ARGUMENTS…``: an int64 tensor ``[samples, length + 1]``, in the order in which they were read, and
the arguments of training, with ``--num-workers 0``.
"""

import runpy
import sys
from pathlib import Path

import torch


def main() -> None:
    """The job; see the module's docstring."""
    from megatron.core.datasets.gpt_dataset import GPTDataset

    from ascend_patch.run import BUNDLED

    file, samples, read = Path(sys.argv.pop(1)), [], GPTDataset.__getitem__

    def read_and_record(self, index):
        sample = read(self, index)
        if not torch.equal(sample["tokens"][1:], sample["labels"][:-1]):
            raise RuntimeError(f"The labels of sample {index} are not its tokens, one further.")
        samples.append(torch.cat([sample["tokens"], sample["labels"][-1:]]))
        return sample

    GPTDataset.__getitem__ = read_and_record
    runpy.run_path(str(BUNDLED), run_name="__main__")
    torch.save(torch.stack(samples), file)


if __name__ == "__main__":
    main()
