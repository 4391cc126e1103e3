"""What a `make train` is asked for: the environment, and the command that examples/mixtral makes of it."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "mixtral" / "pretrain_mixtral_tiny.sh"
# A checkpoint of one of these sizes, or of other text, is not resumed with another.
IDENTITY = (
    *("--num-layers", "--hidden-size", "--ffn-hidden-size", "--num-attention-heads", "--num-query-groups"),
    *("--num-experts", "--seq-length", "--data-path", "--tokenizer-model"),
)


class SettingsError(Exception):
    """The environment asks for something that cannot be; the message says what and what to do."""


@dataclass(frozen=True)
class Settings:
    """The variables of `make train` itself; all others go to the example script as they are."""

    name: str
    data: Path | None
    fresh: bool

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read NAME (the folder under runs/), DATA (a .jsonl file) and FRESH (1: throw that run away)."""
        data = Path(environ["DATA"]) if environ.get("DATA") else None
        name = environ.get("NAME") or (data.stem if data else "mixtral-tiny")
        if name in {".", ".."} or "/" in name:
            raise SettingsError(f"NAME={name} cannot name a folder under runs/. Use letters, digits, - and _.")
        fresh = environ.get("FRESH", "0")
        if fresh not in {"0", "1"}:
            raise SettingsError(f"FRESH={fresh} is neither 0 (resume, the default) nor 1 (start anew).")
        return cls(name, data, fresh == "1")

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return ROOT / "runs" / self.name


@dataclass(frozen=True)
class Command:
    """The command line an example script runs, as its DRY_RUN prints it."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, script: Path, environ: Mapping[str, str], flags: Sequence[str] = ()) -> "Command":
        """Ask the script, which starts nothing; ``flags`` are further ones for upstream.

        Raises:
            SettingsError: with the script's own message, if it refuses the environment.
        """
        result = subprocess.run(
            ["bash", str(script), *flags], env={**environ, "DRY_RUN": "1"}, capture_output=True, text=True
        )
        if result.returncode != 0:
            raise SettingsError(result.stderr.strip())
        return cls(tuple(shlex.split(result.stdout)))

    def value(self, flag: str) -> str:
        """The word after the last ``flag``, the one that counts."""
        last = len(self.words) - 1 - self.words[::-1].index(flag)
        return self.words[last + 1]

    def number(self, flag: str) -> int:
        """The value of ``flag`` as a whole number."""
        return int(self.value(flag))

    @property
    def identity(self) -> dict[str, str]:
        """The flags that tell one run from another."""
        return {flag: self.value(flag) for flag in IDENTITY}
