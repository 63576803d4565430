"""Spaces of small real networks. What building some of them does is told by the environment variable HAZARDS, or by
the file that HAZARDS_FILE names.

It is JSON: index of a class's representative -> behaviour (see ``_act``), or index of a member -> "size ...", which is
what counting it does. HAZARD_ASKED names a member that raises when it is asked for its key or its text. The enumerable
space `hazards` has 24 members, each key shared by two neighbours; `endless` has no enumeration.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from zcpipe.errors import UsageError
from zcpipe.spaces.base import Built, Dataset, Size, Slots


@dataclass(frozen=True)
class Member:
    number: int

    def __str__(self) -> str:
        _ask("text", self)
        return f"member-{self.number}"


class Endless:
    name = "endless"
    datasets: ClassVar = {"tiny": Dataset("tiny", (3, 6, 6), 4)}
    paper = "none"

    def parse(self, text: str) -> Member:
        number = text.removeprefix("member-")
        if not text.startswith("member-") or not number.isdigit():
            raise UsageError(f"{text!r} is not a member; write member-<number>")
        return Member(int(number))

    def sample(self, seed: int, i: int) -> Member:
        return Member((seed * 7919 + i * i * 31) % 50)

    def mutate(self, arch: Member, seed: int, i: int) -> Member:
        return Member(arch.number + 1)

    def neighbours(self, arch: Member) -> list[Member]:
        return [Member(arch.number + 1)]

    def key(self, arch: Member) -> str:
        _ask("key", arch)
        return f"width-{2 + arch.number // 2}"

    def _width(self, arch: Member) -> int:
        return 2 + arch.number // 2

    def size(self, arch: Member, dataset: str) -> Size:
        match _told(arch):
            case "size exit":
                os._exit(7)
            case "size raise":
                raise ValueError(f"told to raise for {arch}")
        width = self._width(arch)
        return Size(params=27 * width + 9 * width**2, macs=arch.number)  # macs differ within a key

    def slots(self, arch: Member, dataset: str) -> Slots:
        return self.common_slots(dataset)

    def common_slots(self, dataset: str) -> Slots:
        return Slots(("first", "second"), ("first", "second"))

    def correspondence(self, representative: Member, member: Member, dataset: str) -> dict[str, str]:
        return {slot: slot for slot in self.common_slots(dataset).layers}

    def build(self, arch: Member, dataset: str, *, full: bool = False) -> Built:
        _act(_told(arch), arch)
        width = self._width(arch)
        with torch.device("meta"):
            model = nn.Sequential()
            model.add_module("first", nn.Conv2d(3, width, 3, bias=False))
            model.add_module("second", nn.Conv2d(width, width, 3, bias=False))
        return Built(model, ("first", "second"))


class Hazards(Endless):
    name = "hazards"

    def parse(self, text: str) -> Member:
        member = super().parse(text)
        if member.number >= len(self):
            raise UsageError(f"{text!r} is not a member; the last is member-{len(self) - 1}")
        return member

    def sample(self, seed: int, i: int) -> Member:
        return Member((seed + 7 * i) % len(self))  # 7 and 24 have no common factor: without replacement

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Member:
        return Member(index)

    def index(self, arch: Member) -> int:
        return arch.number


class Crowd(Hazards):
    name = "crowd"

    def __len__(self) -> int:
        return int(os.environ.get("CROWD", "60"))

    def key(self, arch: Member) -> str:
        return f"crowd-{arch.number // 3}"

    def _width(self, arch: Member) -> int:
        return 2 + arch.number // 3 % 7


def _told(arch: Member) -> str | None:
    text = os.environ.get("HAZARDS", "{}")
    if path := os.environ.get("HAZARDS_FILE"):
        text = Path(path).read_text()
    told: dict[str, str] = json.loads(text)
    return told.get(str(arch.number), os.environ.get("HAZARD_ELSE"))


def _act(behaviour: str | None, arch: Member) -> None:
    match behaviour:
        case "exit":
            os._exit(7)
        case "leave":
            raise SystemExit(5)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            ctypes.string_at(0)
        case "raise":
            raise ValueError(f"told to raise for {arch}\nwith a second line")
        case "greedy":
            torch.empty(1 << 55)
        case "greedy once" if _first_time(arch):
            torch.empty(1 << 55)
        case "lose device":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered\nand more of that")
        case "bloat":
            held = []
            while True:
                held.append(torch.ones(16 << 20))  # 64 MiB, touched
        case "hang":
            time.sleep(3600)
        case "start another, exit" | "start another, hang":
            child = subprocess.Popen(["sleep", "60"])
            (Path(os.environ["HAZARD_MARKS"]) / f"child-{child.pid}").touch()
            _act(behaviour.rpartition(" ")[2], arch)
        case "hold":
            (Path(os.environ["HAZARD_MARKS"]) / str(arch)).touch()
            re.match("(a+)+$", "a" * 60 + "b")  # practically for ever, and without letting any thread run
        case "nap":
            time.sleep(0.05)
        case "nap long":
            time.sleep(0.8)
        case "wait":
            while _told(arch) == "wait":
                time.sleep(0.1)
        case "show devices":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
            (Path(os.environ["HAZARD_MARKS"]) / f"devices-{os.getpid()}").write_text(seen)
            time.sleep(0.5)
        case "exit once" if _first_time(arch):
            os._exit(7)


def _ask(what: str, arch: Member) -> None:
    """Raise where a member has no key or no text, which HAZARD_ASKED says like ``key 31``."""
    if os.environ.get("HAZARD_ASKED") == f"{what} {arch.number}":
        raise ValueError(f"no {what} for {arch.number}")


def _first_time(arch: Member) -> bool:
    marker = Path(os.environ["HAZARD_MARKS"]) / str(arch)
    known = marker.exists()
    marker.touch()
    return not known


SPACES = (Endless(), Hazards(), Crowd())
