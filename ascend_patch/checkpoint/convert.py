"""Converts a checkpoint: Hugging Face's to Megatron-LM's, in any layout, and back, and one layout to another.

:func:`convert` is all of `tools/checkpoint/util.py` but its command line.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ascend_patch.checkpoint import huggingface, journal, manifest, megatron, output, side_files
from ascend_patch.checkpoint.arguments import padded_vocab_size
from ascend_patch.checkpoint.dtypes import dtype_name
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout, virtual_stages
from ascend_patch.checkpoint.manifest import Manifest
from ascend_patch.checkpoint.progress import Progress, Silent
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint
from ascend_patch.checkpoint.unfinished import Work, write
from ascend_patch.checkpoint.verify import verify

Kind = Literal["huggingface", "megatron"]

BACK = "mg2hg"
"""The folder, in that of the original model, into which a model is converted back. ModelLink's name for it."""


@dataclass(frozen=True)
class Options:
    """What to convert, and into what. Sizes mean what Megatron-LM's flags of the same names mean."""

    load_dir: Path
    save_dir: Path
    """What is made; see :attr:`output`."""
    loads: Kind = "huggingface"
    saves: Kind = "megatron"
    step: int | None = None
    """Iteration to read; None: the latest."""
    trust: bool = False
    """Run the code that a pickle asks for."""
    true_vocab_size: int | None = None
    """Tokens of a Megatron-LM checkpoint, which only tells the padded number; None: from its config.json, or that."""
    hf_folder: Path | None = None
    """Where config.json and the tokenizer are, if the Megatron-LM checkpoint does not keep them."""
    tokenizer: Path | None = None
    """A tokenizer's file or folder, if not the source's."""
    num_experts: int | None = None
    """What the model must have, if anything."""
    topk: int | None = None
    """What the model must have, if anything."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    expert_tensor: int = 0
    """0: as `tensor`."""
    layers_per_virtual_stage: int | None = None
    first_layers: int | None = None
    last_layers: int | None = None
    make_vocab_size_divisible_by: int = 1
    extra_vocab_size: int = 0
    """Tokens to add to the vocabulary; they begin as the mean of the others."""
    dtype: torch.dtype | None = None
    """None: as in the source."""
    ckpt_format: str = "torch_dist"
    build: Build = Build()

    workers: int = 2
    verify: bool = False

    @property
    def output(self) -> Path:
        """The folder that is made: `save_dir`, or `mg2hg` in it if that is where the original model is."""
        original = self.saves == "huggingface" and (self.save_dir / side_files.CONFIG).is_file()
        return self.save_dir / BACK if original and not (self.save_dir / manifest.NAME).is_file() else self.save_dir


def convert(options: Options, progress: Progress | None = None) -> Path:
    """Convert a checkpoint, or go on with a conversion that was killed.

    The result is written to `SAVE_DIR.unfinished`, which does not load, and gets its name when it is on disk. What an
    error or a signal interrupts stays there, and the same options continue it.

    Returns:
        The folder with the result.

    Raises:
        CheckpointError: the options contradict each other or the model, the source is not as it should be, the output
            is there already, the disk is full, or what was written cannot be read back.
    """
    progress = progress or Silent()
    folder = options.output
    # With verify, a result that is there already is no error, but what is looked at.
    there = options.verify and (folder / manifest.NAME).is_file()
    if not there:
        output.check_new(folder)
    work = _plan(options, progress)
    if there:
        _check_same(folder, work)
    else:
        write(folder, work, options.workers, progress)
    if options.verify:
        verify(folder, options.workers, progress)
    return folder


def _plan(options: Options, progress: Progress) -> Work:
    """Open the source, and see whether it can become what is asked for."""
    side_files.check_tokenizer(options.tokenizer)
    _check_kind(options)
    files: Path | None = options.load_dir
    if options.loads == "huggingface":
        source = huggingface.open(options.load_dir, trust=options.trust)
    else:
        files = side_files.find(options.hf_folder, options.load_dir, options.save_dir)
        vocab_size = options.true_vocab_size or side_files.vocab_size(files)
        source = megatron.open(options.load_dir, step=options.step, vocab_size=vocab_size, trust=options.trust)
    _check_expected(options, source.shape)
    shape = replace(source.shape, vocab_size=source.shape.vocab_size + options.extra_vocab_size)
    dtype = options.dtype or source.dtype
    experts = f"{shape.num_experts} experts, " if shape.num_experts else ""
    progress.say(
        f"{source.folder}: {'Mixtral' if experts else 'Mistral'}, {shape.num_layers} layers, {experts}"
        f"{len(source.pieces)} tensors, {dtype_name(source.dtype)}."
    )
    if source.fill:
        progress.say(f"The vocabulary has {source.shape.vocab_size} tokens; the rows after them are padding.")
    if options.saves == "megatron":
        return _to_megatron(options, source, shape, dtype, files)
    if files is None:
        progress.say(
            f"There is no {side_files.CONFIG} of the original model: it is made from the arguments of training, with "
            f"{shape.max_position_embeddings} positions, and there is no tokenizer. --hf-folder takes both along."
        )
    return _to_huggingface(options, source, shape, dtype, files)


def _to_huggingface(
    options: Options, source: Checkpoint, shape: ModelShape, dtype: torch.dtype, files: Path | None
) -> Work:
    config = side_files.config(files, shape, dtype)
    return Work(
        source,
        dtype,
        _origin(options, source),
        {"type": "huggingface", "dtype": dtype_name(dtype)},
        lambda folder: huggingface.create(folder, shape, dtype),
        lambda folder: side_files.copy(files, folder, options.tokenizer),
        lambda folder: side_files.write_config(config, folder),
    )


def _to_megatron(
    options: Options, source: Checkpoint, shape: ModelShape, dtype: torch.dtype, files: Path | None
) -> Work:
    layout = Layout(
        options.tensor,
        options.pipeline,
        options.expert,
        options.expert_tensor,
        virtual_stages(shape.num_layers, options.pipeline, options.layers_per_virtual_stage),
        options.first_layers,
        options.last_layers,
    )
    layout.check(shape)
    padded = padded_vocab_size(shape.vocab_size, options.make_vocab_size_divisible_by, options.tensor)
    target = {
        "type": "megatron",
        "dtype": dtype_name(dtype),
        "format": options.ckpt_format,
        **asdict(options.build),
        "vocab_size": shape.vocab_size,
        "padded_vocab_size": padded,
        **asdict(layout),
    }

    def lay_out(folder: Path) -> Checkpoint:
        return megatron.create(
            folder,
            source.shape,  # what it lacks of the vocabulary is filled
            layout,
            dtype,
            padded_vocab=padded,
            checkpoint_format=options.ckpt_format,
            build=options.build,
        )

    def add_side_files(folder: Path) -> None:
        kept = folder / side_files.KEPT_IN
        side_files.copy(files, kept, options.tokenizer)
        if files is not None:
            side_files.write_config(side_files.config(files, shape, dtype), kept)

    return Work(source, dtype, _origin(options, source), target, lay_out, add_side_files, megatron.finish)


def _origin(options: Options, source: Checkpoint) -> dict[str, str]:
    return {"type": options.loads, "folder": str(source.folder.resolve())}


def _check_kind(options: Options) -> None:
    """Is the source of the kind that is to be read, and finished?"""
    folder = options.load_dir
    for one in (folder, folder.parent):
        if output.is_unfinished(one):
            raise CheckpointError(f"{one} is a conversion that was not finished: run its command again.")
    tracker, config = (folder / megatron.TRACKER).is_file(), (folder / side_files.CONFIG).is_file()
    if options.loads == "huggingface" and tracker and not config:
        raise CheckpointError(f"{folder} holds a checkpoint of Megatron-LM: use --loader mixtral_mg.")
    if options.loads == "megatron" and config and not tracker:
        raise CheckpointError(f"{folder} holds a Hugging Face model: use --loader mixtral_hf.")


def _check_expected(options: Options, shape: ModelShape) -> None:
    for flag, wanted, found in (
        ("--num-experts", options.num_experts, shape.num_experts),
        ("--moe-router-topk", options.topk, shape.topk),
    ):
        if wanted is not None and wanted != found:
            raise CheckpointError(
                f"{flag} is {wanted}, but the model in {options.load_dir} has {found}. A conversion cannot change that."
            )


def _check_same(folder: Path, work: Work) -> None:
    """Is `folder`, which is finished, the result of this work?"""
    found = Manifest.read(folder)
    if changed := journal.differences(
        {"source": found.source, "target": found.target}, {"source": work.origin, "target": work.target}
    ):
        raise CheckpointError(
            f"{folder} exists already, and is of another conversion: {'; '.join(changed[:5])}. It is left as it is: "
            f"remove it, or name another --save-dir. To verify it nevertheless, leave --load-dir out."
        )
