"""Evaluations: the log-likelihoods and answers of lm-eval's own ``hf`` model, in every layout, after a kill too."""

import json
import logging
from pathlib import Path

import pytest

from ascend_patch.checkpoint.convert import Options, convert
from tests.system_tests import hugging_face, releases
from tests.system_tests.evaluation import LENGTH, evaluate, write_questions
from tests.system_tests.generation import SHAPE, flags
from tests.system_tests.launcher import ROOT
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_SP, tiny

pytestmark = pytest.mark.xdist_group("logits")

TOLERANCE = 1e-3
TEXTS = ["and then it was night", "a text of many words, " * 40]
PROMPTS = [
    ["what is a model", {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": False}],
    ["the logits of " * 80, {"until": ["e"], "max_gen_toks": 12}],
]


class Reference:
    """A model, data sets, and what lm-eval's ``hf`` model says about them."""

    def __init__(self, folder: Path) -> None:
        from lm_eval.api.instance import Instance
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoTokenizer

        from ascend_patch.evaluation import report, tasks

        hf = hugging_face.save(hugging_face.random_model(**SHAPE), folder / "hf")
        checkpoint = convert(Options(hf, folder / "megatron", make_vocab_size_divisible_by=128))
        self.flags = flags(SHAPE, checkpoint, hf, seq_length=LENGTH)
        self.data = write_questions(folder)
        lm = HFLM(
            pretrained=hugging_face.load(hf),
            tokenizer=AutoTokenizer.from_pretrained(hf),
            max_length=LENGTH,
            batch_size=4,
        )
        self.answers = {}
        for name, data in self.data.items():
            loaded = tasks.load(name, data)
            results = simple_evaluate(model=lm, tasks=[loaded.spec], task_manager=loaded.manager)
            self.answers[name] = report.answers(loaded.subjects, results)
        self.texts = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS])
        self.prompts = lm.generate_until([Instance("generate_until", {}, tuple(prompt), 0) for prompt in PROMPTS])

    @property
    def tasks(self) -> dict[str, str]:
        return {name: str(data) for name, data in self.data.items()}

    def check(self, folder: Path, names: list[str]) -> None:
        """The results in ``folder`` are those of lm-eval's own model."""
        worst = 0.0
        for name in names:
            found = json.loads((folder / f"{name}.json").read_text())["answers"]
            assert len(found) == len(self.answers[name])
            for one, other in zip(found, self.answers[name], strict=True):
                pairs = zip(one["logprobs"], other["logprobs"], strict=True)
                worst = max(worst, *(abs(ours - theirs) for ours, theirs in pairs))
                for same in ("subject", "question", "answer", "right"):
                    assert one[same] == other[same], (one, other)
        print(f"largest difference of the log-likelihoods: {worst:.2e}")
        assert worst < TOLERANCE


def write_task(file: Path, answer: str) -> Path:
    """A task of lm-eval's, with data of its own: the first of two prompts has ``answer`` as its completion."""
    questions = [{"question": PROMPTS[0][0], "answer": answer}, {"question": "another", "answer": "never this, surely"}]
    data = file.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(file.parent)},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": PROMPTS[0][1],
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    file.write_text(json.dumps(task))  # JSON is YAML
    return file


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return Reference(tmp_path_factory.mktemp("evaluation"))


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (ONE, 1),
        pytest.param(EP2, 2, marks=pytest.mark.slow),  # the script's test has it too
        pytest.param(PP2, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP | PP2 | EP2, 8, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "pp2", "tp2", "tp2-pp2-ep2"],
)
def test_results_are_those_of_lm_evals_own_model(
    reference: Reference, server: Server, tmp_path: Path, layout: dict, processes: int
) -> None:
    """MMLU and C-Eval with five examples, BoolQ with none, whole texts and completions, a task in a file; float32."""
    own = write_task(tmp_path / "own.yaml", reference.prompts[0])
    request = {"tasks": reference.tasks | {str(own): None}, "texts": TEXTS, "prompts": PROMPTS}
    evaluate(server, tmp_path, reference.flags | layout, processes, **request).succeeded()
    assert json.loads((tmp_path / "own.json").read_text())["results"]["own"]["exact_match,none"] == 0.5
    reference.check(tmp_path, list(reference.data))
    found = json.loads((tmp_path / "texts.json").read_text())
    assert found["texts"] == pytest.approx(reference.texts, abs=TOLERANCE)
    assert found["prompts"] == reference.prompts
    assert not (tmp_path / "mmlu.json.journal").exists()


@pytest.mark.slow
@pytest.mark.parametrize("release", [one for one in releases.TRAINABLE if one != releases.INSTALLED])
def test_every_release(reference: Reference, tmp_path: Path, release: str) -> None:
    """Scores and completions over two ranks, one after the other in the same process."""
    request = {"tasks": reference.tasks, "texts": TEXTS, "prompts": PROMPTS}
    with Server(tmp_path, releases.folder(release)) as server:
        evaluate(server, tmp_path, reference.flags | EP2, 2, **request).succeeded()
    reference.check(tmp_path, list(reference.data))
    assert json.loads((tmp_path / "texts.json").read_text())["prompts"] == reference.prompts


def test_a_killed_evaluation_goes_on(reference: Reference, server: Server, tmp_path: Path) -> None:
    """With what is in the journal, but for a line that was cut off; another model's journal is refused."""
    request = {"tasks": {"mmlu": str(reference.data["mmlu"])}}
    killed = evaluate(server, tmp_path, reference.flags, **request, die_after=17)
    assert killed.returncode != 0
    assert not (tmp_path / "mmlu.json").exists()
    journal = tmp_path / "mmlu.json.journal"
    with journal.open("a") as file:
        file.write('{"key": "0123')

    refused = evaluate(server, tmp_path, reference.flags | {"rotary_base": 1234}, **request)
    assert refused.returncode > 0
    assert "has the results of another evaluation: model rotary_base was 1000000 and is 1234" in refused.output

    evaluate(server, tmp_path, reference.flags, **request).succeeded()
    reference.check(tmp_path, ["mmlu"])
    assert json.loads((tmp_path / "texts.json").read_text())["computed"] == 4 * 14 - 17
    assert not journal.exists()


def test_the_script(reference: Reference, server: Server, tmp_path: Path) -> None:
    """Tables on standard output, the file, and a mistake in the data as one paragraph."""
    script = ROOT / "tasks" / "evaluation" / "evaluate.py"
    output = tmp_path / "boolq.json"
    data = reference.data["boolq"]
    words = ["--task", "boolq", "--task-data-path", data, "--output", output, *tiny(**reference.flags | EP2)]
    run = server.run(script, words, 2).succeeded()
    reference.check(tmp_path, ["boolq"])
    found = json.loads(output.read_text())
    assert found["questions"] == 6
    assert f"| BoolQ    |         6 |              0.852 |        {found['accuracy']:.3f} |" in run.output

    (tmp_path / "val.jsonl").write_text('{"question": "q", "passage": "p", "answer": "yes"}\n')
    words[3] = tmp_path
    failed = server.run(script, words, 2)
    assert failed.returncode > 0
    assert f'ascend_patch: {tmp_path}/val.jsonl, line 1: found answer "yes", allowed: true or false' in failed.output
