"""An estimate in hours and bytes: by the rates of rates.yaml, as data and as a table with what it rests on."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from diver.cost.estimate import Estimate, Phase

RATES = Path(__file__).with_name("rates.yaml")
UNITS = {"GB": 1e9, "MB": 1e6}
RATE_KEYS = ("label", "assumed", "source", "reached", "flop_per_second", "utilisation", "parallel")
# Phases whose rate is another's.
RATE_OF = {"experts": "distill", "systems": "recover", "answers": "recover"}


def load_rates(path: Path = RATES) -> dict[str, Any]:
    """Devices and priors of rates.yaml."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def seconds(phase: Phase, device: Mapping[str, Any]) -> float | None:
    """Seconds of a phase on a device, one job after another; None where there is nothing to reckon with."""
    name = RATE_OF.get(phase.name, phase.name)
    if not phase.macs or name not in device.get("reached", device.get("utilisation")):
        return None
    if "reached" in device:
        return 2 * sum(phase.macs.values()) / device["reached"][name]
    share = device["utilisation"][name]
    return sum(2 * macs / (device["flop_per_second"][kind] * share) for kind, macs in phase.macs.items())


def published_seconds(estimate: Estimate, device: Mapping[str, Any]) -> float | None:
    """Seconds of the recovery by a published rate of a whole chain; None if there is none for the prior."""
    known = device.get("published", {}).get("seconds_per_image")
    if known is None or known["prior"] != estimate.study.prior.source:
        return None
    cost = estimate.rates["priors"][known["prior"]]
    each = 2 * known["steps"] * cost["pass"] + cost["encode"] + cost["decode"]
    return known["seconds"] * sum(estimate.phases["recover"].macs.values()) / each


def reckon(estimate: Estimate, names: Iterable[str]) -> dict[str, Any]:
    """The estimate as plain data: phases with jobs, operations, bytes, and hours on each device."""
    devices = {name: estimate.rates["devices"][name] for name in names}
    rows = []
    for phase in estimate.phases.values():
        hours = {}
        for name, device in devices.items():
            found = seconds(phase, device)
            hours[name] = None if found is None else found / 3600 / device["parallel"]
        rows.append(
            {
                "phase": phase.name,
                "jobs": phase.jobs,
                "images": phase.images,
                "macs": sum(phase.macs.values()),
                "bytes": phase.stored,
                "hours": hours,
                "left_out": phase.unknown,
            }
        )
    told = {}
    for name, device in devices.items():
        told[name] = {key: device[key] for key in RATE_KEYS if key in device}
        published = published_seconds(estimate, device)
        if published is not None:
            told[name]["recover_by_published_rate_hours"] = published / 3600
            told[name]["published"] = device["published"]
    return {"study": estimate.study.name, "phases": rows, "devices": told}


def _size(count: float) -> str:
    unit = next((unit for unit in ("GB", "MB") if count >= UNITS[unit]), "MB")
    return f"{count / UNITS[unit]:,.1f} {unit}" if count else ""


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def shown(found: Mapping[str, Any]) -> str:
    """An estimate as a table with what it rests on."""
    devices = found["devices"]
    head = ["phase", "jobs", "images", "TMAC", "disk", *(f"hours, {name}" for name in devices)]
    lines = [head]
    for row in found["phases"]:
        hours = [_hours(row["hours"][name]) for name in devices]
        numbers = [
            f"{row['jobs']:,}",
            f"{row['images'] or '':,}" if row["images"] else "",
            f"{row['macs'] / 1e12:,.0f}",
        ]
        lines.append([row["phase"], *numbers, _size(row["bytes"]), *hours])
    totals = [sum(row["hours"][name] or 0 for row in found["phases"]) for name in devices]
    jobs, macs, stored = (sum(row[key] for row in found["phases"]) for key in ("jobs", "macs", "bytes"))
    lines.append(["total", f"{jobs:,}", "", f"{macs / 1e12:,.0f}", _size(stored), *map(_hours, totals)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    text = ["  ".join(words).rstrip() for words in cells]
    for name, device in devices.items():
        kind = "ASSUMED rate" if device["assumed"] else "rate"
        asked = "reached" if "reached" in device else "utilisation"
        shares = ", ".join(f"{phase} {share:.3g}" for phase, share in device[asked].items())
        text.append(f"{name} ({device['label']}): {kind}: {device['source']}; {asked}: {shares}")
        if "published" in device:
            whole, source = _hours(device["recover_by_published_rate_hours"]), device["published"]["source"]
            seconds_each = device["published"]["seconds_per_image"]["seconds"]
            text.append(f"{name}: recover takes {whole} hours at the published {seconds_each} s an image ({source})")
    for row in found["phases"]:
        text += [f"left out of {row['phase']}: {what}" for what in row["left_out"]]
    return "\n".join(text)
