"""`ascend-patch contract`: generate `patches/`, or check that it is what would be generated."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from ascend_patch.commands import megatron
from ascend_patch.commands.catalogue import catalogue
from ascend_patch.commands.megatron import Megatron
from ascend_patch.engine.contract import Contract, Release, default_directory
from ascend_patch.engine.errors import ContractError
from ascend_patch.engine.patch import Patch
from ascend_patch.engine.report import write_text

HELP = "generate or check the fingerprints in patches/ and the catalogue (for developers)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--megatron",
        "--wheel",
        nargs="+",
        action="extend",
        default=[],
        metavar="PLACE",
        help="the releases to record or check: folders, wheels, versions (downloaded) or `installed`",
    )
    parser.add_argument("--directory", type=Path, help="where the files are (default: patches/)")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", action="store_true", help="write the files of the named releases and CATALOGUE.md")
    task.add_argument("--check", action="store_true", help="exit with 1 if a file is stale; nothing is written")


def run(arguments: argparse.Namespace) -> int:
    """Write the files, or name the stale ones and return 1."""
    from ascend_patch.features import PATCHES

    directory = arguments.directory or default_directory()
    places = [megatron.resolve(value) for value in arguments.megatron]
    if arguments.write:
        for name, text in release_files(PATCHES, places):
            write_text(directory / name, text)
        write_text(directory / "CATALOGUE.md", catalogue(PATCHES, Contract.load(directory)))
        return 0
    stale = stale_files(PATCHES, places, directory)
    for line in stale:
        print(line)
    if stale:
        print("Generate them anew with `ascend-patch contract --megatron RELEASE… --write`, then review.")
    return int(bool(stale))


def release_files(patches: Sequence[Patch], places: Iterable[Megatron]) -> Iterable[tuple[str, str]]:
    """File name and text for each release."""
    for place in places:
        release = Release.record(place.version, place.tree, symbols(patches))
        yield f"{place.version}.toml", release.to_toml()


def symbols(patches: Sequence[Patch]) -> set[str]:
    """Every upstream symbol that some patch relies on."""
    return {symbol for patch in patches for symbol in (patch.target, *patch.consumers)}


def stale_files(patches: Sequence[Patch], places: Iterable[Megatron], directory: Path) -> list[str]:
    """One line for each file of `directory` that is not what would be generated.

    Files of releases that `places` does not include are checked for the symbols they list only.
    """
    contract = Contract.load(directory)
    wanted = symbols(patches)
    stale = []
    for version in contract.versions:
        listed = set(contract.release(version).symbols)
        if listed != wanted:
            names = ", ".join(sorted(listed ^ wanted)[:3])
            stale.append(f"{version}.toml is stale: it and the patches do not list the same symbols ({names} …).")
    for name, text in release_files(patches, places):
        if not (directory / name).is_file():
            raise ContractError(f"{directory / name} does not exist. Record the release with --write first.")
        if (directory / name).read_text(encoding="utf-8") != text:
            stale.append(f"{name} is stale: the release, or how it is fingerprinted, gives another text.")
    file = directory / "CATALOGUE.md"
    if not file.is_file() or file.read_text(encoding="utf-8") != catalogue(patches, contract):
        stale.append("CATALOGUE.md is stale.")
    return stale
