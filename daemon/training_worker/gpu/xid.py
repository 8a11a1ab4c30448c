"""Xids: the driver's reports that something went wrong on a GPU."""

import queue
import threading
import time
from typing import Any

import msgspec

from training_worker.gpu.nvml import (
    MIG,
    answer_of,
    import_nvml,
)

# How long the watch for Xids waits for the next one, and how long before it restarts after an error.
XID_WAIT_MS = 2000
XID_PAUSE = 5.0

# The instance of an event that is the whole GPU's (nvmlEventData_t).
WHOLE_GPU = 0xFFFFFFFF


class XidWatch:
    """Listens, in its own thread, to the Xids that the driver reports; each is passed on once.

    An Xid is how the driver reports that something went wrong on a GPU; most are a program's own fault.
    """

    def __init__(self, uuids: list[str]) -> None:
        self._uuids = uuids
        # By the UUID of the reporting GPU, those of our devices that it reports for, each with its instance.
        self._members: dict[str, dict[str, int]] = {}
        self._heard: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def start(self) -> None:
        """Listen until the program ends."""
        threading.Thread(target=self._run, name="xid", daemon=True).start()

    def heard(self) -> list[tuple[str, int]]:
        """Return what came since the last call: each GPU's UUID, and the Xid."""
        return [self._heard.get_nowait() for _ in range(self._heard.qsize())]

    def _run(self) -> None:
        nvml = import_nvml()
        while True:
            try:
                nvml.nvmlInit()
                try:
                    self._listen(nvml)
                finally:
                    nvml.nvmlShutdown()
            except nvml.NVMLError:
                # A lost GPU, a driver that is being replaced, or one that has no events.
                time.sleep(XID_PAUSE)

    def _listen(self, nvml: Any) -> None:
        events = nvml.nvmlEventSetCreate()
        self._members = {}
        try:
            for uuid in self._uuids:
                self._register(nvml, uuid, events)
            while True:
                self._wait(nvml, events)
        finally:
            nvml.nvmlEventSetFree(events)

    def _register(self, nvml: Any, uuid: str, events: Any) -> None:
        # A GPU without events is watched by its readings alone.
        handle = answer_of(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            return
        instance = WHOLE_GPU
        if uuid.startswith(MIG):
            # Events are the GPU's; each names the instance that it concerns, if any.
            instance = answer_of(nvml, nvml.nvmlDeviceGetGpuInstanceId, handle)
            handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        device = nvml.nvmlDeviceGetUUID(handle)
        if device not in self._members:
            answer_of(nvml, nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, events)
        self._members.setdefault(device, {})[uuid] = instance

    def _wait(self, nvml: Any, events: Any) -> None:
        try:
            event = nvml.nvmlEventSetWait_v2(events, XID_WAIT_MS)
        except nvml.NVMLError_Timeout:
            return
        for uuid, instance in self._members.get(nvml.nvmlDeviceGetUUID(event.device), {}).items():
            if event.gpuInstanceId in {instance, WHOLE_GPU}:
                self._heard.put((uuid, int(event.eventData)))


class Xid(msgspec.Struct, frozen=True):
    """The meaning of an Xid; ``lasting`` is one for which NVIDIA advises a reset of the GPU, or more."""

    meaning: str
    lasting: bool


# By the column "immediate action" of https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, which is for
# Ampere and later: all whose action is a reset of the GPU (RESET_GPU, WORKFLOW_XID_48, WORKFLOW_NVLINK_ERR) or more
# (RESTART_BM, RESTART_VM, CHECK_MECHANICALS). Of those whose action is RESTART_APP, only 94 is the GPU's fault and no
# program's; a reset is advised when convenient. Left out on purpose:
# - 63, 92, 121, 157: the action is IGNORE. A row that is to be remapped waits for the next reset and harms nobody.
# - 109, a context switch that took too long: RESET_GPU, but NVIDIA's k8s-device-plugin (internal/rm/health.go) counts
#   it among the application's errors. A job that causes it would disable one GPU after the other.
# - 144 to 150, NVLink 5: their action depends on a subcode, which NVML does not report. Usually a fatal one
#   comes with 48.
# - 122 to 125: unused. 142: the video encoder's. 154: repeats the action of the Xid before it.
CRITICAL_XIDS = {
    46: Xid("the GPU stopped processing", lasting=True),
    48: Xid("uncorrectable memory error", lasting=True),
    54: Xid("auxiliary power is not connected", lasting=True),
    62: Xid("internal micro-controller halted", lasting=True),
    64: Xid("memory row could not be remapped", lasting=True),
    74: Xid("NVLink error", lasting=True),
    79: Xid("fell off the bus", lasting=True),
    94: Xid("contained memory error", lasting=False),
    95: Xid("uncontained memory error", lasting=True),
    110: Xid("security fault", lasting=True),
    119: Xid("the GPU's system processor does not answer", lasting=True),
    120: Xid("the GPU's system processor failed", lasting=True),
    136: Xid("link training failed", lasting=True),
    140: Xid("unrecovered memory error", lasting=True),
    143: Xid("the GPU could not be initialised", lasting=True),
    151: Xid("key rotation error", lasting=True),
    155: Xid("NVLink is down", lasting=True),
    156: Xid("a part of the GPU is to be retired", lasting=True),
    158: Xid("fatal timeout", lasting=True),
}
