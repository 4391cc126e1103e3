"""Instruction data from records to losses: prepared, packed, raw, in layouts, on the NPU."""

import json
import random
from collections.abc import Callable
from decimal import Decimal
from functools import cache, partial
from pathlib import Path

import pytest

from tests.system_tests import parity, releases
from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import CP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny
from tests.unit_tests.tools.conftest import SENTENCES, sentencepiece_model, tokenizer_folder
from tools.preprocess_data import main as preprocess

__all__ = ["sentencepiece_model", "tokenizer_folder"]  # fixtures

pytestmark = pytest.mark.xdist_group("instruction")  # one worker: they share what is prepared

LENGTH = 96
CONVERSATIONS = 24
EQUAL = Decimal("1e-6")
LAYOUTS = {
    "one": (1, ONE),
    "batches of 2": (1, {"micro_batch_size": 2}),
    "tp2_sp": (2, TP2_SP),
    "pp2": (2, PP2),
    "tp2_pp2": (4, TP2_SP | PP2),
    "tp2_pp2_ep2": (8, TP2_PP2_EP2),
    "cp2": (2, CP2 | {"cp_comm_type": "a2a"}),
    "cp2_tp2": (4, CP2 | TP2_SP | {"cp_comm_type": "a2a"}),
    "cp2_pp2": (4, CP2 | PP2 | {"cp_comm_type": "allgather"}),
}
# The router's loss counts padding too, of which the forms of the data have more and less.
ALL_TOKENS_EQUAL = {
    "calculate_per_token_loss": True,
    "moe_router_load_balancing_type": "none",
    "moe_aux_loss_coeff": 0,
}


class Data:
    """The same conversations in each form.

    Attributes:
        flags: of a run on any of them.
        records: what MP_DATASET_TYPE=raw reads.
        padded, packed: prefixes.
        samples: documents of the packed form.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        seed = random.SystemRandom().randrange(2**31)
        print(f"seed of the conversations {seed}")
        generator = random.Random(seed)
        self.records = folder / "alpaca.jsonl"
        with self.records.open("w") as file:
            for _ in range(CONVERSATIONS):
                words = " ".join(generator.sample(SENTENCES, 2)).split()
                cut = generator.randint(1, len(words) - 1)
                answer = " ".join(words[cut : cut + 8])  # one conversation is shorter than a sample
                print(json.dumps({"instruction": " ".join(words[:cut][-4:]), "output": answer}), file=file)
        self.padded, self.packed = folder / "padded", folder / "packed"
        common = ["--input", str(self.records), "--tokenizer-name-or-path", str(tokenizer), "--workers", "1"]
        common += ["--handler-name", "GeneralInstructionHandler", "--seq-length", str(LENGTH)]
        assert preprocess([*common, "--output-prefix", str(self.padded)]) == 0
        room = ["--pad-to-multiple-of", "4"]  # for context parallelism
        assert preprocess([*common, "--output-prefix", str(self.packed), "--pack", *room]) == 0
        from ascend_patch.data.stored import StoredConversations

        self.samples = len(StoredConversations(str(self.packed)))
        assert len(StoredConversations(str(self.padded), LENGTH)) == CONVERSATIONS > self.samples
        self.flags = {
            "mock_data": False,
            "vocab_size": False,
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": tokenizer,
            "split": "1,0,0",
            "seq_length": LENGTH,
            "max_position_embeddings": LENGTH,
            "bf16": False,
            "micro_batch_size": 1,
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Data:
    return Data(tmp_path_factory.mktemp("instruction"), tokenizer_folder)


def loss_of_all(data: Data, path: Path, samples: int, **changes: object) -> Decimal:
    """The mean loss of every answer's token: all of them are in one batch."""
    flags = data.flags | ALL_TOKENS_EQUAL | {"global_batch_size": samples, "train_iters": 1, "data_path": path}
    return train(tiny(**flags | changes)).succeeded().iterations[1].loss


def test_packed_conversations_do_not_see_one_another(data: Data) -> None:
    """The loss is that of the conversations for themselves; without --sft they do see one another."""
    alone = loss_of_all(data, data.padded, CONVERSATIONS, is_instruction_dataset=True)
    apart = loss_of_all(data, data.packed, data.samples, sft=True)
    together = loss_of_all(data, data.packed, data.samples, is_instruction_dataset=True)
    assert abs(apart / alone - 1) <= EQUAL, (alone, apart)
    assert abs(together / alone - 1) > 10 * EQUAL, (alone, together)


def test_raw_records_give_the_losses_of_prepared_ones(data: Data) -> None:
    flags = data.flags | {"is_instruction_dataset": True}
    prepared = train(tiny(**flags, data_path=data.padded)).succeeded()
    raw = train(tiny(**flags, data_path=data.records), variables={"MP_DATASET_TYPE": "raw"}).succeeded()
    assert raw.iterations == prepared.iterations
    assert sorted(prepared.iterations) == [1, 2, 3]
    assert prepared.losses[3] < prepared.losses[1] - Decimal("0.1")


@pytest.mark.slow
def test_adapters_learn_from_answers(data: Data, tmp_path: Path) -> None:
    """As examples/mixtral/tune_mixtral_8x7b_lora_ptd.sh asks for it; tests/system_tests/test_lora.py has the rest."""
    flags = data.flags | {"is_instruction_dataset": True, "data_path": data.padded}
    start = {"save": tmp_path / "base", "save_interval": 1, "train_iters": 1}
    train(tiny(**flags | start)).succeeded()
    lora = {"lora_target_modules": ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), "lr": 3e-3}
    lora |= {"pretrained_checkpoint": tmp_path / "base", "train_iters": 6, "global_batch_size": CONVERSATIONS}
    losses = train(tiny(**flags | lora)).succeeded().losses
    print(losses)
    assert losses[6] < losses[3] < losses[1]


class Weights:
    """Runs of all layouts from the same weights."""

    def __init__(self, data: Data, folder: Path, **start: object) -> None:
        self._flags = data.flags | ALL_TOKENS_EQUAL | {"sft": True, "data_path": data.packed, "num_layers": 4}
        self._weights = folder / "weights"
        self._start = start
        self.reference = cache(partial(self.train, "one"))
        save = {"train_iters": 1, "save": self._weights, "save_interval": 1, "no_save_optim": True, "no_save_rng": True}
        train(tiny(**self._flags | save), variables={"ASCEND_PATCH_DEVICE": "cpu"}, **start).succeeded()

    def train(self, layout: str, device: str = "cpu", report: Path | None = None) -> Run:
        processes, flags = LAYOUTS[layout]
        variables = {"ASCEND_PATCH_DEVICE": device} | ({"ASCEND_PATCH_REPORT": str(report)} if report else {})
        line = tiny(**self._flags | flags | {"load": self._weights, "finetune": True})
        return train(line, processes=processes, variables=variables, timeout=500, **self._start).succeeded()


def check_parity(run: Run, reference: Run) -> None:
    tolerance = parity.TOLERANCES["fp32"]
    differences = [abs(run.iterations[i].loss / reference.iterations[i].loss - 1) for i in (1, 2, 3)]
    assert differences[0] <= tolerance.first, differences
    assert max(differences) <= tolerance.all, differences


@pytest.fixture(scope="module", params=releases.parameters(slow_before=releases.TRAINABLE[-1]))
def weights(request: pytest.FixtureRequest, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(data, tmp_path_factory.mktemp("weights"), megatron=releases.folder(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pp2", "tp2_sp", "tp2_pp2", "tp2_pp2_ep2", "cp2", "cp2_tp2", "cp2_pp2"])
def test_packed_samples_in_layouts(weights: Weights, layout: str) -> None:
    check_parity(weights.train(layout), weights.reference())


@pytest.mark.parametrize("weights", releases.parameters()[-1:], indirect=True)
def test_micro_batches_of_several_packed_samples(weights: Weights) -> None:
    """From 0.19 on."""
    check_parity(weights.train("batches of 2"), weights.reference())


@pytest.mark.checkouts
@pytest.mark.parametrize("layout", ["pp2", "tp2_sp", "tp2_pp2_ep2", "cp2", "cp2_tp2", "cp2_pp2"])
def test_checkout(checkout: Path, layout: str, data: Data, tmp_path: Path) -> None:
    """The stock script: every tensor parallel rank of every stage learns of the boundaries."""
    weights = Weights(data, tmp_path, megatron=checkout, script=checkout / "pretrain_gpt.py")
    check_parity(weights.train(layout), weights.reference())


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("layout", ["one", pytest.param("cp2", marks=pytest.mark.slow)])
def test_parity_on_the_npu(
    data: Data, tmp_path: Path, record_property: Callable[[str, object], None], layout: str
) -> None:
    weights, report = Weights(data, tmp_path), tmp_path / "npu.json"
    reference, run = weights.reference(), weights.train(layout, "npu", report)
    for device, trained in (("cpu", reference), ("npu", run)):
        record_property(f"losses on {device}", " ".join(str(i.loss) for i in trained.iterations.values()))
    check_parity(run, reference)
    found = json.loads(report.read_text())
    parity.check_npu_ran(found)
    assert set(found["operators"]["attention"]["calls"]) == {"attention_thd"}
