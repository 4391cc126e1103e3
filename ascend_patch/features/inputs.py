"""Bad input ends a run with one paragraph: data files, tokenizers, checkpoints, fp8.

Upstream notices most of it too, but answers with an assertion without words, a `struct.error`, another
library's advice, or, for an unreadable checkpoint, with exit status 0. Nothing is refused here that upstream
accepts: files are checked where upstream would read past their end, the rest is explained after it failed.
"""

import struct
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from ascend_patch.config import rank
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch
from ascend_patch.failure import is_of_communication
from ascend_patch.features.conditions import without_transformer_engine

#: By the code of the token type.
_TOKEN_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
#: For each sequence an int32 length and an int64 pointer; for each document boundary an int64.
_SEQUENCE_BYTES, _BOUNDARY_BYTES = 4 + 8, 8
_AGAIN = "Prepare the data again (tools/preprocess_data.py), or copy both files again if they were copied."


def check_dataset(prefix: str, multimodal: bool = False) -> None:
    """Raise unless ``prefix.idx`` is whole and ``prefix.bin`` holds all that it points to.

    Reads the header and the last entry of the index, whatever its size. The format is upstream's
    ``megatron/core/datasets/indexed_dataset.py``.

    Raises:
        AscendPatchError: a file is missing, of another format, or shorter than it says itself.
    """
    from ascend_patch.data.index import HEADER, MAGIC, VERSION

    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    missing = [str(path) for path in (index, data) if not path.is_file()]
    if missing:
        raise AscendPatchError(
            f"The dataset {prefix} is incomplete: {' and '.join(missing)} is missing. --data-path takes the common "
            "path of a .bin and an .idx file, without the suffix (it usually ends in _text_document). Correct it, or "
            "prepare the data with tools/preprocess_data.py."
        )
    with index.open("rb") as stream:
        header = stream.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise AscendPatchError(
                f"{index} ({index.stat().st_size} bytes) does not begin as an index of an indexed dataset does "
                f"({HEADER.size} bytes, the first of them {MAGIC!r}): it is of another format, or was cut off while "
                f"it was written. {_AGAIN}"
            )
        _, version, code, sequences, boundaries = HEADER.unpack(header)
        if version != VERSION or code not in _TOKEN_BYTES:
            raise AscendPatchError(
                f"{index} states version {version} and token type {code}; version {VERSION} and token types "
                f"{min(_TOKEN_BYTES)} to {max(_TOKEN_BYTES)} exist. {_AGAIN}"
            )
        expected = HEADER.size + sequences * (_SEQUENCE_BYTES + multimodal) + boundaries * _BOUNDARY_BYTES
        if index.stat().st_size < expected:
            raise AscendPatchError(
                f"{index} is cut off: for the {sequences} sequences that it states it needs {expected} bytes and has "
                f"{index.stat().st_size}. {_AGAIN}"
            )
        if sequences == 0:
            raise AscendPatchError(f"{index} holds no sequences: there is nothing to train on. {_AGAIN}")
        stream.seek(HEADER.size + (sequences - 1) * 4)
        (length,) = struct.unpack("<i", stream.read(4))
        stream.seek(HEADER.size + sequences * 4 + (sequences - 1) * 8)
        (pointer,) = struct.unpack("<q", stream.read(8))
    needed = pointer + length * _TOKEN_BYTES[code]
    if data.stat().st_size < needed:
        raise AscendPatchError(
            f"{data} is cut off: its index points to {needed} bytes and it has {data.stat().st_size}. {_AGAIN}"
        )


def initialize(original: Callable) -> Callable:
    """``IndexedDataset.initialize`` that looks at local files before it maps them."""

    @wraps(original)
    def check_then_initialize(
        self, path_prefix, multimodal, mmap, object_storage_config, fast_cache_load=False, *args, **kwargs
    ):
        if object_storage_config is None and not fast_cache_load:
            self.bin_reader = self.index = None  # upstream's __del__ deletes them, also where this raises
            check_dataset(path_prefix, multimodal)
        return original(self, path_prefix, multimodal, mmap, object_storage_config, fast_cache_load, *args, **kwargs)

    return check_then_initialize


def get_num_epochs(original: Callable) -> Callable:
    """``GPTDataset._get_num_epochs`` that ends where there is no text to go through, however often."""

    @wraps(original)
    def check_then_count(self, num_tokens_per_epoch: int) -> int:
        if num_tokens_per_epoch == 0 and self.num_samples is not None:
            raise AscendPatchError(
                f"--split {self.config.split} leaves no document of {self.dataset_path} for the "
                f"{self.index_split.name} split. Give it a larger share, or none (0), or prepare more documents."
            )
        return original(self, num_tokens_per_epoch)

    return check_then_count


def build_tokenizer(original: Callable) -> Callable:
    """``build_tokenizer`` that says which tokenizer could not be built, and from what."""

    @wraps(original)
    def build(args, *rest, **kwargs):
        try:
            return original(args, *rest, **kwargs)
        except AscendPatchError:
            raise
        except Exception as error:
            raise AscendPatchError(
                f"--tokenizer-type {args.tokenizer_type} could not be built from --tokenizer-model "
                f"{args.tokenizer_model} ({_contents(args.tokenizer_model)}): {_in_short(error)} HuggingFaceTokenizer "
                "takes a folder with tokenizer.json or tokenizer.model, or a name on the Hub; Llama2Tokenizer and "
                "SentencePieceTokenizer the file tokenizer.model. Correct --tokenizer-type or --tokenizer-model."
            ) from error

    return build


def load_checkpoint(original: Callable) -> Callable:
    """``load_checkpoint`` that says which checkpoint could not be loaded, and why."""

    @wraps(original)
    def load(ddp_model, optimizer, opt_param_scheduler, load_arg="load", *rest, **kwargs):
        from torch.distributed.checkpoint import CheckpointException  # not an Exception, but a BaseException

        try:
            return original(ddp_model, optimizer, opt_param_scheduler, load_arg, *rest, **kwargs)
        except AscendPatchError:
            raise
        except CheckpointException as error:
            first, _ = error.failures[min(error.failures)]
            raise AscendPatchError(_unloadable(load_arg, _in_short(first))) from error
        except Exception as error:
            if is_of_communication(error):  # not the checkpoint's fault
                raise
            raise AscendPatchError(_unloadable(load_arg, _in_short(error))) from error
        except SystemExit as end:
            from megatron.training import get_args

            # Upstream prints what is wrong with the file and exits with status 0, as if all were well.
            if end.code or get_args().exit_on_missing_checkpoint:
                raise
            raise AscendPatchError(_unloadable(load_arg, "a file of it cannot be read, see above.")) from end

    return load


def read_metadata(original: Callable) -> Callable:
    """``read_metadata`` that can read latest_checkpointed_iteration.txt after a kill in the moment of its writing.

    Upstream empties the file and then writes the number into it, when all of the checkpoint is on disk: while it is
    empty, the checkpoint that was written last is complete.
    """

    @wraps(original)
    def read(tracker_filename):
        tracker = Path(tracker_filename)
        if tracker.is_file() and not tracker.read_text(errors="replace").strip():
            written = max(tracker.parent.glob("iter_" + 7 * "[0-9]"), key=_time_of_writing, default=None)
            if written is not None:
                # Every rank comes here, and some may find it written by others already.
                unfinished = tracker.with_name(f"{tracker.name}.{rank()}")
                unfinished.write_text(str(int(written.name.removeprefix("iter_"))))
                unfinished.replace(tracker)
                if rank() == 0:
                    print(
                        f"ascend_patch: {tracker} was empty, because the process that wrote it was killed. {written}, "
                        "which was written last, was complete by then: it is loaded.",
                        file=sys.stderr,
                    )
        return original(tracker_filename)

    return read


def _time_of_writing(folder: Path) -> float:
    """Of what was written last in a checkpoint; a folder's own time does not change with its files."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _unloadable(load_arg: str, reason: str) -> str:
    from megatron.training import get_args
    from megatron.training.checkpointing import get_checkpoint_tracker_filename

    args = get_args()
    folder = getattr(args, load_arg)
    tracker = Path(get_checkpoint_tracker_filename(str(folder)))
    latest = repr(tracker.read_text(errors="replace").strip()) if tracker.is_file() else "none"
    complete = ", ".join(sorted(path.name for path in Path(str(folder)).glob("iter_*"))) or "none"
    return (
        f"The checkpoint of --{load_arg.replace('_', '-')} {folder} (latest iteration: {latest}; there: {complete}) "
        f"could not be loaded: {reason} Either a file of it is missing or cut off, or it is of another model, layout "
        "or format than the arguments say. Correct the arguments, or write the number of an earlier "
        f"iteration into {tracker}; nothing in the folder was changed."
    )


def post_init(original: Callable) -> Callable:
    """``TransformerConfig.__post_init__`` that refuses 8 and 4 bit formats by name."""

    @wraps(original)
    def check_then_post_init(self) -> None:
        for flag, value in (("--fp8-format", self.fp8), ("--fp4-format", getattr(self, "fp4", None))):
            if value:
                raise AscendPatchError(
                    f"{flag} {value} was given, but training in that format needs TransformerEngine and a GPU that has "
                    "it; ascend_patch has none. --bf16, --fp16 and float32 are supported. Leave the flag out."
                )
        original(self)

    return check_then_post_init


def _contents(path: str | None) -> str:
    """What is at ``path``, for a message."""
    if not path:
        return "not given"
    place = Path(path)
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir())
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"a folder with {shown}" if names else "an empty folder"
    return f"a file of {place.stat().st_size} bytes" if place.is_file() else "no such file or folder"


def _in_short(error: BaseException, limit: int = 400) -> str:
    """The error as part of a paragraph."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (text if len(text) <= limit else f"{text[:limit]}…").rstrip(". ") + "."


_HERE = "ascend_patch.features.inputs"

PATCHES = (
    Patch(
        id="inputs.dataset",
        target="megatron.core.datasets.indexed_dataset:IndexedDataset.initialize",
        impl=f"{_HERE}:initialize",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "A data file that is missing or was cut off ends in an assertion or a struct.error; a short .bin is "
            "noticed only when training comes to its end."
        ),
        remove_when="upstream checks the sizes of both files against the index.",
    ),
    Patch(
        id="inputs.split",
        target="megatron.core.datasets.gpt_dataset:GPTDataset._get_num_epochs",
        impl=f"{_HERE}:get_num_epochs",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason="With few documents a split can be empty, and upstream then adds up its tokens for ever.",
        remove_when="upstream refuses an empty split that samples are wanted of.",
    ),
    Patch(
        id="inputs.tokenizer",
        target="megatron.core.tokenizers.utils.build_tokenizer:build_tokenizer",
        impl=f"{_HERE}:build_tokenizer",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Errors of the tokenizer libraries name neither the flag nor the path, and advise other things.",
        remove_when="upstream names the tokenizer arguments in the error.",
    ),
    Patch(
        id="inputs.checkpoint",
        target="megatron.training.checkpointing:load_checkpoint",
        impl=f"{_HERE}:load_checkpoint",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=(
            "An unreadable checkpoint ends with exit status 0 (format torch) or an error from deep in "
            "torch.distributed.checkpoint that does not name it."
        ),
        remove_when="upstream raises an error that names the checkpoint.",
    ),
    Patch(
        id="inputs.tracker",
        target="megatron.training.checkpointing:read_metadata",
        impl=f"{_HERE}:read_metadata",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason=(
            "A kill while latest_checkpointed_iteration.txt is written leaves it empty, and a completed checkpoint is "
            "not found."
        ),
        remove_when="upstream replaces the file instead of writing into it.",
        consumers=("megatron.training.checkpointing:save_checkpoint",),
    ),
    Patch(
        id="inputs.fp8",
        target="megatron.core.transformer.transformer_config:TransformerConfig.__post_init__",
        impl=f"{_HERE}:post_init",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason="Upstream asks for a newer TransformerEngine where none can be had, or fails only when it is called.",
        remove_when="ascend_patch has 8 bit formats.",
        when=without_transformer_engine,
    ),
)
