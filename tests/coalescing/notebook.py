"""What a notebook shows: a small model of a front end, for comparing two ways to say the same."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

KEY = b"the kernel's key"


class Notebook:
    """Takes messages in; `snapshots` holds all that there was to see at each message that changes no output."""

    def __init__(self) -> None:
        self.cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.clearing: set[str] = set()
        self.widgets: dict[str, dict[str, Any]] = defaultdict(dict)
        self.ran: list[str] = []
        self.snapshots: list[Any] = []

    def take(self, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        cell = message["parent_header"].get("msg_id", "")
        if kind in ("stream", "display_data", "execute_result", "error"):
            if cell in self.clearing:
                self.clearing.discard(cell)
                self.cells[cell].clear()
            self._show(cell, kind, content)
        elif kind == "update_display_data":
            for outputs in self.cells.values():
                for output in outputs:
                    if output.get("id") == content["transient"]["display_id"]:
                        output["data"] = content["data"]
            self._run(content["data"])
        elif kind == "clear_output":
            self.clearing.discard(cell)
            if content["wait"]:
                self.clearing.add(cell)
            else:
                self.cells[cell].clear()
        elif kind == "comm_msg" and content["data"].get("method") == "update":
            self.widgets[content["comm_id"]].update(content["data"]["state"])
        if kind in ("status", "execute_result", "error", "execute_input", "comm_open") or (
            kind == "comm_msg" and content["data"].get("method") != "update"
        ):
            self.snapshots.append((kind, self.seen()))

    def _show(self, cell: str, kind: str, content: dict[str, Any]) -> None:
        outputs = self.cells[cell]
        if kind == "stream":
            if outputs and outputs[-1].get("name") == content["name"]:
                outputs[-1]["text"] += content["text"]
            else:
                outputs.append({"name": content["name"], "text": content["text"]})
        else:
            data = content.get("data", content)
            name = content.get("transient", {}).get("display_id")
            for other in (other for each in self.cells.values() for other in each):
                if kind == "display_data" and name and other.get("id") == name:
                    other["data"] = data
            outputs.append({"id": content.get("transient", {}).get("display_id"), "data": data})
            self._run(data)

    def _run(self, data: dict[str, Any]) -> None:
        self.ran += [value for kind, value in data.items() if kind == "application/javascript"]

    def seen(self) -> Any:
        cells = {
            cell: [
                {**output, "text": terminal(output["text"])} if "text" in output else output
                for output in outputs
            ]
            for cell, outputs in self.cells.items()
            if outputs
        }
        return copy.deepcopy((cells, dict(self.widgets), self.ran))


def terminal(text: str) -> list[str]:
    """Lines as they look after carriage returns and backspaces."""
    lines: list[list[str]] = [[]]
    at = 0
    for character in text:
        if character == "\n":
            lines.append([])
            at = 0
        elif character == "\r":
            at = 0
        elif character == "\b":
            at = max(0, at - 1)
        else:
            lines[-1][at : at + 1] = [character]
            at += 1
    return ["".join(line) for line in lines]
