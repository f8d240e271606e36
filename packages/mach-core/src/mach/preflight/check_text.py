"""Owns the report of `mach check` as people read it; everything in it comes from the JSON document."""

from __future__ import annotations

from mach.commands.text_table import printable, readable_size, text_table
from mach.preflight.check_report import Report
from mach.preflight.path_matrix import PATHS


def check_text(report: Report) -> str:
    """The report on one checkpoint."""
    lines = [
        f"model: {printable(report['model'])}",
        f"model_type: {printable(report['model_type'])}",
        f"supported: {'yes' if report['supported'] else 'no'}",
    ]
    if report["layout"] is not None:
        lines += [
            f"layout: {report['layout']['kind']}",
            f"quant: {printable(report['quantization']['label'])}",
            _artifacts_line(report),
            *_memory_lines(report),
            *_speed_lines(report),
            "",
            text_table(
                ("path", "status", "reason"),
                [(row["path"], row["status"], printable(row["reason"])) for row in report["paths"]],
            ),
            "",
        ]
    lines.append(f"verdict: {'supported' if report['supported'] else 'not supported'}")
    if not report["supported"]:
        lines.append(f"reason: {printable(report['reason'])}")
    lines += [f"note: {printable(note)}" for note in report["notes"]]
    if report["serve_command"]:
        lines.append(f"serve with: {report['serve_command']}")
    return "\n".join(lines)


def matrix_text(report: Report) -> str:
    """The matrix of path × architecture."""
    architectures = report["architectures"]
    statuses = {
        name: {row["path"]: row["status"] for row in arch["paths"]} for name, arch in architectures.items()
    }
    rows = [(path, *(statuses[name][path] for name in architectures)) for path in PATHS]
    later = [path for path in PATHS if path not in report["engine_paths"]]
    absent = [name for name, arch in architectures.items() if not arch["loadable"]]
    lines = [text_table(("path", *architectures), rows), ""]
    lines.append(f"What each architecture allows. mach {report['mach_version']} itself does not have yet:")
    lines.append(f"paths {', '.join(later) or 'none'}; models {', '.join(absent) or 'none'}.")
    return "\n".join(lines)


def _artifacts_line(report: Report) -> str:
    sidecar, draft = report["artifacts"]["sidecar"], report["artifacts"]["draft_dir"]
    found = "no" if not sidecar["present"] else "yes" if sidecar["valid"] else "invalid"
    usable = (
        "none" if draft is None else printable(draft["path"]) + ("" if draft["usable"] else " (unusable)")
    )
    return f"artifacts: sidecar={found}, draft_dir={usable}"


def _memory_lines(report: Report) -> list[str]:
    memory, statuses = report["memory"], {row["path"]: row["status"] for row in report["paths"]}
    estimate = memory["estimate"]
    note = [f"  {memory['note']}"] if memory["note"] else []
    if estimate is None:
        return [f"memory: verdict={memory['verdict']}", *note]
    mode = estimate["mode"]
    chosen, machine = estimate[mode], estimate["machine"]
    lines = [
        f"memory: verdict={memory['verdict']}, experts={readable_size(estimate['expert_bytes_in_memory'])}, "
        f"kv@{estimate['context_length']}={readable_size(estimate['kv_bytes'])}, "
        f"working_set={readable_size(chosen['working_set_bytes'])}"
    ]
    for name, path in (("streaming", "expert_streaming"), ("resident", "resident_stacked")):
        if statuses[path] in ("blocked", "n/a") and name != mode:
            continue
        parts = " + ".join(
            f"{label} {readable_size(size)}" for label, size in estimate[name]["parts"].items()
        )
        total = readable_size(estimate[name]["working_set_bytes"])
        lines.append(f"  {name}: {parts} = {total} ({estimate[name]['verdict']})")
    if machine["available_bytes"] is not None:
        available = readable_size(machine["available_bytes"])
        lines.append(f"  available: {available} ({machine['source']}, backend {machine['backend']})")
    return lines + note


def _speed_lines(report: Report) -> list[str]:
    speed = report["speed"]
    if speed is None:
        return ["speed: not estimated; --measure-disk measures what the estimate needs"]
    (slow, fast), (low, high) = speed["tokens_per_second"], speed["hit_rate"]
    touched, most, least, disk = map(
        readable_size,
        (speed["active_bytes_per_token"], *speed["miss_bytes_per_token"], speed["disk_bytes_per_second"]),
    )
    return [
        f"speed: about {slow:.3g} to {fast:.3g} tokens/s decoding (rough estimate), "
        f"hit rate {low:.0%} to {high:.0%}",
        f"  {touched} touched per token, {least} to {most} of it from disk at {disk}/s "
        f"(measured {speed['measured']})",
    ]
