"""Fine-tuning with adapters: what is trained and saved, in which layouts, resumed, started from, and refused."""

import shutil
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.checkpoint import FileSystemReader

from ascend_patch.run import BUNDLED
from tests.system_tests import bits, parity, releases
from tests.system_tests.launcher import Run
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TINY, TP2_PP2_EP2, TP2_SP, tiny

pytestmark = pytest.mark.xdist_group("logits")  # the group of the server

SMALL = {"bf16": False, "hidden_size": 64, "ffn_hidden_size": 96, "seq_length": 32, "lr": 1e-2, "train_iters": 4}
DENSE = {name: False for name in TINY if name.startswith("moe_") or name == "num_experts"}
ALL = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router")
# Upstream's optimizer leaves gaps behind parameters that are not multiples of 64, and saves whatever is in them.
LORA = {"lora_target_modules": ALL, "lora_r": 16, "lora_alpha": 32}
DENSE_LORA = DENSE | LORA | {"lora_target_modules": ALL[:-1]}
PARTS = len(ALL) * 2
"""Parameters of a layer's adapters."""


class Job:
    """Runs with adapters, from one base that a short training wrote.

    Attributes:
        base: its checkpoint.
    """

    def __init__(self, server: Server, folder: Path, **model: object) -> None:
        self._server, self._model = server, model
        self.base = folder / "base"
        start = {"save": self.base, "train_iters": 1, "save_interval": 1, "lora_target_modules": False}
        self.run(**start, lora_r=False, lora_alpha=False, pretrained_checkpoint=False)
        self.reference = cache(lambda: self.run())

    def start(self, processes: int = 1, **flags: object) -> Run:
        """The run, however it ended."""
        common = SMALL | LORA | self._model | {"pretrained_checkpoint": self.base}
        return self._server.run(BUNDLED, tiny(**common | flags), processes)

    def run(self, processes: int = 1, **flags: object) -> Run:
        return self.start(processes, **flags).succeeded()

    def refused(self, **flags: object) -> str:
        """What a run said that was refused."""
        (paragraph,) = set(self.start(**flags).failed().paragraphs)
        return paragraph


@pytest.fixture(scope="module")
def job(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(server, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def trained(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters after two and after four iterations."""
    folder = tmp_path_factory.mktemp("trained")
    job.run(save=folder, load=folder, save_interval=2)
    return folder


def check_parity(run: Run, reference: Run) -> None:
    assert sorted(run.iterations) == sorted(reference.iterations) == [1, 2, 3, 4]
    for number, found in run.iterations.items():
        expected = reference.iterations[number]
        assert abs(found.loss / expected.loss - 1) <= parity.TOLERANCES["fp32"].all
        assert abs(found.grad_norm / expected.grad_norm - 1) <= Decimal("0.02")


LAYOUTS = {
    "tp2": (2, TP2_SP),
    "dp2": (2, ONE),
    "pp2": (2, PP2),
    "ep2": (2, EP2),
    "tp2_ep2_etp1": (2, TP2_SP | EP2 | {"expert_tensor_parallel_size": 1}),
    "tp2_pp2_ep2": (8, TP2_PP2_EP2),
}


@pytest.mark.parametrize("layout", [pytest.param(name, marks=[pytest.mark.slow] * (name != "tp2")) for name in LAYOUTS])
def test_layouts_train_alike(job: Job, layout: str) -> None:
    processes, flags = LAYOUTS[layout]
    check_parity(job.run(processes, **flags), job.reference())


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["transformer_engine", "local"])
@pytest.mark.parametrize("layout", [TP2_SP, {"tensor_model_parallel_size": 2}, PP2], ids=["tp2_sp", "tp2", "pp2"])
def test_dense_layouts_train_alike(server: Server, tmp_path: Path, layout: dict, impl: str) -> None:
    dense = Job(server, tmp_path, **DENSE_LORA, transformer_impl=impl)
    check_parity(dense.run(2, **layout), dense.reference())


def test_recomputation_changes_nothing(job: Job) -> None:
    """Of all layers; the embedding, which is frozen, is before the first."""
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    assert job.run(**recompute).iterations == job.reference().iterations


def test_overlapped_communication_changes_nothing(job: Job) -> None:
    """The weights beside adapters are frozen: their layers have no weight gradient."""
    assert job.run(2, **TP2_SP, tp_comm_overlap=True).iterations == job.run(2, **TP2_SP).iterations


def test_only_adapters_are_trained_and_saved(trained: Path) -> None:
    stored = FileSystemReader(trained / "iter_0000004").read_metadata().state_dict_metadata
    sizes = {name: entry.size.numel() for name, entry in stored.items() if hasattr(entry, "size")}
    weights = {name: size for name, size in sizes.items() if not name.startswith("optimizer.")}
    assert len(weights) == PARTS
    assert all(".lora." in name for name in weights)
    moments = sum(size for name, size in sizes.items() if name.endswith(".exp_avg"))
    assert sum(weights.values()) <= moments < 1.1 * sum(weights.values())  # with padding
    changed = bits.tensors(trained, 2), bits.tensors(trained, 4)
    differing = {name for name in changed[0] if changed[0][name] != changed[1][name]}
    assert {name for name in changed[0] if name.startswith("decoder.")} <= differing


@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        pytest.param(1, ONE, marks=pytest.mark.slow),
        (2, EP2),
        pytest.param(2, TP2_SP, marks=pytest.mark.slow),
        pytest.param(2, PP2 | {"ckpt_format": "torch"}, marks=pytest.mark.slow),
        pytest.param(8, TP2_PP2_EP2, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "tp2", "pp2_torch", "tp2_pp2_ep2"],
)
def test_a_resumed_run_is_bit_by_bit_the_same(job: Job, tmp_path: Path, processes: int, flags: dict) -> None:
    """With dropout: the random states are resumed too.

    In bfloat16: upstream's distributed optimizer cannot load its own checkpoint of a float32 model.
    """
    flags = flags | {"bf16": True, "lora_dropout": 0.2, "save_interval": 2}
    if flags.get("ckpt_format") == "torch":
        start = {"save": tmp_path / "base", "train_iters": 1, "save_interval": 1, "lora_target_modules": False}
        start |= {"lora_r": False, "lora_alpha": False, "lora_dropout": False, "pretrained_checkpoint": False}
        job.run(processes, **flags | start)
        flags |= {"pretrained_checkpoint": tmp_path / "base"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    first = job.run(processes, **flags, save=whole, load=whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "iter_0000004")
    (resumed / "latest_checkpointed_iteration.txt").write_text("2")
    second = job.run(processes, **flags, save=resumed, load=resumed)
    assert sorted(second.iterations) == [3, 4]
    assert second.iterations[3] == first.iterations[3]
    assert not bits.differing_tensors(resumed, whole, 4)


@pytest.mark.slow
def test_dropout_is_applied(job: Job) -> None:
    assert job.run(lora_dropout=0.2).iterations[4] != job.reference().iterations[4]


@pytest.mark.slow
def test_a_run_starts_from_other_adapters(job: Job, trained: Path) -> None:
    """In any layout. It is a new run, with the data and the iterations of one."""
    begun = job.run(lora_load=trained, train_iters=1).iterations[1].loss
    assert abs(begun / job.reference().iterations[1].loss - 1) > Decimal("1e-3")
    for_two = job.run(2, **TP2_SP, lora_load=trained, train_iters=1).iterations[1].loss
    assert abs(for_two / begun - 1) <= Decimal("1e-6")


@pytest.mark.slow
def test_the_base_may_be_in_load(job: Job) -> None:
    """As in MindSpeed-LLM's scripts, where no adapters are resumed."""
    run = job.run(load=job.base, pretrained_checkpoint=False)
    assert run.iterations == job.reference().iterations


def test_what_does_not_fit_is_refused(job: Job, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    start = {"save": other, "train_iters": 1, "save_interval": 1, "lora_target_modules": False, "seed": 7}
    job.run(**start, lora_r=False, lora_alpha=False, pretrained_checkpoint=False)
    assert "were trained with --lora-r 16, and this run has --lora-r 8" in job.refused(load=trained, lora_r=8)
    assert "are of another base: the checksum" in job.refused(load=trained, pretrained_checkpoint=other)
    assert "holds a whole model, not adapters" in job.refused(lora_load=other)
    assert "holds adapters, not their base" in job.refused(pretrained_checkpoint=trained)
    assert "holds no checkpoint" in job.refused(pretrained_checkpoint=tmp_path)
    assert "need --moe-grouped-gemm" in job.refused(moe_grouped_gemm=False)


@pytest.fixture(scope="module", params=releases.parameters()[:-1])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """The same with another release of upstream."""
    folder = tmp_path_factory.mktemp("release")
    with Server(folder, releases.folder(request.param)) as server:
        yield Job(server, folder)


@pytest.mark.slow
def test_other_releases(release: Job, tmp_path: Path) -> None:
    check_parity(release.run(8, **TP2_PP2_EP2), release.reference())
    test_a_resumed_run_is_bit_by_bit_the_same(release, tmp_path, 2, EP2)
