"""A clock that goes on only while a GPU is at work on graphs, by MAX's events before and behind each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from max.driver import DeviceEvent
from max.engine import Model

if TYPE_CHECKING:
    import max.driver

MILLISECOND = 1e-3


class DeviceClock:
    """Adds up what a device needs for graphs, from when it has done all before them until they are done.

    What the host does between two graphs is not in it, and copies are not.

    Parameters
    ----------
    device : max.driver.Device
        a GPU: MAX's CPU has no such events
    """

    def __init__(self, device: max.driver.Device) -> None:
        self._device = device
        self._events: list[tuple[DeviceEvent, DeviceEvent]] = []

    @contextmanager
    def running(self) -> Iterator[DeviceClock]:
        """Count the runs of this process, inside, whoever makes them."""
        replaced = {name: getattr(Model, name) for name in ("execute", "replay")}
        for name, run in replaced.items():
            setattr(Model, name, self._counted(run))
        try:
            yield self
        finally:
            for name, run in replaced.items():
                setattr(Model, name, run)

    def read(self) -> float:
        """Return the seconds of all runs so far, when they are done."""
        self._device.synchronize()
        return MILLISECOND * sum(before.elapsed_time(behind) for before, behind in self._events)

    def _counted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def counted(model: Model, *inputs: Any) -> Any:
            if all(device.is_host for device in model.input_devices):  # the spectrogram, whatever the device
                return run(model, *inputs)
            before, behind = (DeviceEvent(self._device, enable_timing=True) for _ in range(2))
            self._device.default_queue.record_event(before)
            result = run(model, *inputs)
            self._device.default_queue.record_event(behind)
            self._events.append((before, behind))
            return result

        return counted
