"""Kills scripts at random times, and compares what they leave with what an undisturbed run leaves.

    make soak KILLS=20
    python tests/soak.py search grid --kills 20 --seed 1

A script is started, killed with SIGKILL after a random time, and given again until it has finished;
that is repeated in new folders until it has been killed so often. Results must be the same byte for
byte, but for times. The exit code is 1 if one was not.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIGITS = "--space examples.layers_space:Digits --layers.width 8"
SEARCH = (
    f"{DIGITS} --epochs 6 --search.architectures 2 --search.chunk 1 --search.batches 2 "
    "--warmup-epochs 0 --derive-samples 2 --probes 2 --probe-every 1 --devices 1"
)
COMMANDS = {
    "search": f"search {SEARCH} --resume",
    "search_many": f"search_many --resume --search='{SEARCH} --out {{out}}/0' "
    f"--search='{SEARCH} --seed 1 --out {{out}}/1' --out {{out}}/all",
    "train_final": f"train_final {DIGITS} --architecture random --epochs 6 --resume",
    "train_many": f"train_many --training-flags='{DIGITS} --epochs 2' --count 4",
    "two_models": "two_models --preset demo --seeds 3 --seeds-per-call 1 --a-steps 50 --b-steps 50",
    "grid": f"grid {DIGITS.split(' --layers')[0]} --preset smoke --seeds 2 --trial-seeds 100 "
    f"--search-flags='{SEARCH.split('Digits ')[1]}' --arms 'plain: --method none' "
    "'WPL: --method wpl --strength 1 | --method wpl --strength 10'",
}
COMPARED = (".json", ".jsonl", ".npz", ".csv", ".md", ".png")
TIMES = {"seconds", "minutes", "finished", "started", "date", "out", "runs", "command"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--kills", type=int, default=10, help="of each script")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    given = parser.parse_args()
    if unknown := set(given.scripts) - set(COMMANDS):
        parser.error(f"there is no script {unknown.pop()}; choose of {', '.join(COMMANDS)}")
    drawn, wrong = random.Random(given.seed), False
    for name in given.scripts or COMMANDS:
        with tempfile.TemporaryDirectory(prefix="soak_") as folder:
            found = soak(COMMANDS[name], Path(folder), given.kills, drawn)
        print(f"{name}: killed {given.kills} times, {found or 'nothing differs'}", flush=True)
        wrong |= bool(found)
    return int(wrong)


def soak(command: str, folder: Path, kills: int, drawn: random.Random) -> str:
    """What differs from an undisturbed run, in words."""
    whole = folder / "whole"
    run(command, whole)  # compiles
    start = time.monotonic()
    run(command, folder / "timed")
    seconds = time.monotonic() - start
    number = 0
    while kills > 0:
        number += 1
        out = folder / f"killed_{number}"
        while kills > 0 and not run(command, out, drawn.uniform(0, seconds)):
            kills -= 1
        if not kills:
            run(command, out)
        if found := different(whole, out):
            return found
    return ""


def arguments(command: str, out: Path) -> list[str]:
    """The script and its flags; a command without a place for its folder is given it as --out."""
    of_folder = "" if "{out}" in command else " --out {out}"
    return shlex.split((command + of_folder).format(out=out))


def run(command: str, out: Path, seconds: float | None = None) -> bool:
    """Whether it has finished before it was killed.

    A killed grid leaves its searches at work, and is refused until they have ended.
    """
    name, *flags = arguments(command, out)
    words = [sys.executable, "-m", f"experiments.{name}", *flags]
    for _ in range(100):
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return False
        if process.returncode == 0:
            return True
        if b"of a finished run" in said:  # killed after the last file was written
            return True
        if b"is at work" not in said:
            raise SystemExit(
                f"{shlex.join(words)}\nexit code {process.returncode}\n{said.decode()}"
            )
        time.sleep(1)
    raise SystemExit(f"{out} is still locked\n{said.decode()}")


def different(whole: Path, out: Path) -> str:
    """The first file that differs."""
    there, here = files(whole), files(out)
    if missing := sorted(map(str, there.keys() ^ here.keys())):
        return f"{missing[0]} is in one folder only"
    for name, path in there.items():
        if content(path, whole) != content(here[name], out):
            return f"{name} differs"
    return ""


def files(folder: Path) -> dict[str, Path]:
    """What a run has left, its own runs among it, by a name that does not depend on the folder."""
    both = {"": folder, "runs/": folder.with_name(f"{folder.name}_runs")}
    return {
        f"{name}{path.relative_to(place)}": path
        for name, place in both.items()
        for path in sorted(place.rglob("*"))
        if path.suffix in COMPARED and "checkpoints" not in path.parts
    }


def content(path: Path, folder: Path) -> object:
    """What it says, without times and without the name of its folder."""
    if path.suffix not in (".json", ".jsonl", ".md"):
        return path.read_bytes()
    text = path.read_text().replace(folder.name, "")
    if path.suffix == ".md":
        return re.sub(r"[\d.]+ (min|s|minutes?|seconds?)\b", "", text)
    return [timeless(json.loads(part)) for part in parts(path, text)]


def parts(path: Path, text: str) -> list[str]:
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def timeless(tree: object) -> object:
    if isinstance(tree, dict):
        return {name: timeless(value) for name, value in tree.items() if name not in TIMES}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


if __name__ == "__main__":
    sys.exit(main())
