"""Machines for NetBox: devices and discovered inventory items.

Fields are named as in its REST API and bulk import (https://netboxlabs.com/docs/netbox/models/dcim/inventoryitem/).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from willitrun_probe.machine import Machine
from willitrun_probe.units import format_bytes

VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}
ITEM_FIELDS = ("device", "name", "manufacturer", "part_id", "discovered", "description")


def netbox(machines: Iterable[Machine]) -> dict[str, Any]:
    """Return devices and inventory items. Sites, roles and device types are NetBox's own and are not guessed."""
    devices, items = [], []
    for machine in machines:
        devices.append(
            {
                "name": machine.name,
                "status": "active",
                "comments": f"{machine.cpu.name or 'CPU'}, {format_bytes(machine.memory.total_bytes)} RAM",
                "custom_fields": {"willitrun_shape": machine.shape_hash},
            }
        )
        for number, gpu in enumerate(machine.gpus):
            items.append(
                {
                    "device": machine.name,
                    "name": f"gpu{number}",
                    "manufacturer": VENDORS[gpu.vendor],
                    "part_id": gpu.name,
                    "discovered": True,
                    "description": f"{format_bytes(gpu.memory_total_bytes)} {gpu.pci_address or ''}".strip(),
                }
            )
    return {"devices": devices, "inventory_items": items}


def inventory_items_csv(document: dict[str, Any]) -> str:
    """Write the inventory items for NetBox's bulk import."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ITEM_FIELDS)
    writer.writeheader()
    writer.writerows({**item, "discovered": "true"} for item in document["inventory_items"])
    return text.getvalue()
