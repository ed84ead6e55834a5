"""Places arrays on a mesh of devices: lanes over its first axis, the model inside each lane over its second.

    one axis     each device runs its own lanes in a loop of its own; one sum merges what they collect
    two axes     one program over all lanes, which XLA partitions both ways by where its arguments lie

A core can be a device too. By itself XLA uses several cores only inside one operation, which small operations
do not repay. On `cores()` each core runs lanes of its own instead, and rounds of FedAvg take 0.7 (logistic
regression, perceptron) to 0.5 (LSTM) of the time of one device with both cores (2-core x86); those of large
convolutions, which XLA spreads well, about the same. So a simulator without a `mesh` asks for the cores when
it is made (`usual`).

>>> split((10, 64, 32), "model", 8)
P(None, 'model', None)
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_core import machine
from fedjax_core.lanes.pack import Packed, Places, Schedule
from fedjax_core.types import Columns

log = logging.getLogger("fedjax_core")

_EVERY: Any = PartitionSpec()
_ALIGNED = 64  # bytes: JAX on CPU uses an array in place where it begins at a multiple of these


def cores(count: int | None = None) -> Mesh:
    """A mesh for a simulator: every device of this process, on a CPU one for each core that it may use; or
    `count` of them.

    JAX fixes the number of CPU devices when it begins, so call this before anything is computed; raises
    RuntimeError afterwards, unless JAX was begun with as many (`JAX_NUM_CPU_DEVICES=8`).

    >>> cores().axis_names
    ('lanes',)
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    wanted = count or machine.cores()
    ask_for_cores(wanted)
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return Mesh(np.array(devices[:count]), ("lanes",))
    if len(devices) < wanted:
        raise RuntimeError(
            f"JAX has begun with {len(devices)} CPU devices, and {wanted} are wanted: call fc.cores() before anything is computed, "
            f"or start with JAX_NUM_CPU_DEVICES={wanted}"
        )
    return Mesh(np.array(devices[:wanted]), ("lanes",))


def ask_for_cores(count: int) -> None:
    """Lets JAX begin with this many CPU devices, unless it has begun or the number is configured already."""
    if jax.config.values[
        "jax_num_cpu_devices"
    ] < 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # JAX has begun
            jax.config.update("jax_num_cpu_devices", count)


def usual(lanes: int | None) -> Mesh | None:
    """The default mesh of a simulator with this number of lanes (None: to be chosen); None for one device.

    It is all cores of a CPU. It is one device where JAX has begun with another number of them, which somebody
    may have wanted; where these lanes cannot be spread evenly; on GPUs; and where several processes share the
    devices."""
    here, wanted = jax.local_device_count(), machine.cores()
    if jax.default_backend() != "cpu" or jax.process_count() > 1 or wanted == 1:
        return None
    if here == 1:
        _warn_of_idle_cores(wanted)
    return cores() if here == wanted and (lanes is None or lanes % wanted == 0) else None


@cache
def _warn_of_idle_cores(count: int) -> None:
    log.warning(
        "JAX had begun before the first simulator was made, with one device for the %d cores of this machine: rounds may take up to "
        "%d times as long. Make the simulator, or call fc.cores(), before anything else is computed, or start with "
        "JAX_NUM_CPU_DEVICES=%d; mesh=None says that one device is what you want",
        count, count, count,
    )  # fmt: skip


class Placing:
    """The placement of the state and of a dispatch's arrays, and how a program is spread; for one device if
    there is no mesh."""

    def __init__(self, mesh: Mesh | None) -> None:
        if mesh is not None and len(mesh.axis_names) > 2:
            raise ValueError(
                f"mesh must have one axis, for lanes, or a second one, for the model; this one has {mesh.axis_names}"
            )
        # XLA decides how arrays lie along its axes: a model is written without knowing of them.
        self.mesh = (
            None
            if mesh is None
            else Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
        )
        self.devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
        """The number of devices that the lanes are spread over."""
        self.parts = 1 if mesh is None or len(mesh.axis_names) == 1 else mesh.shape[mesh.axis_names[1]]
        """The number of devices that the model inside a lane is split over."""
        self.loops = 1 if self.parts > 1 else self.devices
        """The number of loops that run side by side, each with the examples of its own lanes."""

    @property
    def axis(self) -> str | None:
        """The mesh axis over which loops are merged, None where there is one loop."""
        return None if self.mesh is None or self.parts > 1 else self.mesh.axis_names[0]

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding with the same on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, _EVERY)

    @property
    def on_cores(self) -> bool:
        """Whether the devices are parts of one host's processor, which share its memory."""
        mesh = self.mesh
        return (
            mesh is not None
            and mesh.size > 1
            and not mesh.is_multi_process
            and mesh.devices.flat[0].platform == "cpu"
        )

    def data(self, columns: Columns) -> Columns:
        """Puts all examples on every device; cores share one copy."""
        return jax.device_put(aligned(columns) if self.on_cores else columns, self.everywhere)

    def constants(self, arrays: Any) -> Any:
        """Puts what a model reads and nobody trains: split as the model is, or whole on every device; cores
        share one copy."""
        return jax.device_put(aligned(arrays) if self.on_cores else arrays, self.state(arrays))

    def state(self, state: Any) -> Any:
        """The sharding of each leaf of a state."""
        if self.mesh is None or self.parts == 1:
            return jax.tree.map(lambda x: self.everywhere, state)
        mesh, axis = self.mesh, self.mesh.axis_names[1]
        return jax.tree.map(lambda x: NamedSharding(mesh, split(jnp.shape(x), axis, self.parts)), state)

    def place(self, state: Any, packed: Packed) -> tuple[Any, Packed]:
        """Puts the state and the arrays of a dispatch where they belong."""
        if self.mesh is None:
            return state, packed
        mesh = self.mesh
        return jax.device_put(state, self.state(state)), jax.device_put(
            packed, jax.tree.map(lambda spec: NamedSharding(mesh, spec), self._specs(packed))
        )

    def spread(
        self, rounds: Callable[..., tuple[Any, Any]], packed: Packed
    ) -> Callable[..., tuple[Any, Any]]:
        """`rounds(data, count, state, packed)` on all devices; `packed` for its shapes."""
        if self.mesh is None:
            return rounds
        if self.parts > 1:

            def partitioned(data: Any, count: Any, state: Any, packed: Packed) -> tuple[Any, Any]:
                state, metrics = rounds(data, count, state, packed)
                return lax.with_sharding_constraint(state, self.state(state)), metrics

            return partitioned
        specs = (_EVERY, _EVERY, _EVERY, self._specs(packed))
        return jax.shard_map(
            rounds, mesh=self.mesh, in_specs=specs, out_specs=_EVERY, axis_names={self.axis}, check_vma=False
        )

    def _specs(self, packed: Packed) -> Packed:
        """The specs by which the arrays of a dispatch are spread over the axis of lanes."""
        assert self.mesh is not None
        axis = self.mesh.axis_names[0]
        by_slot, by_lane = PartitionSpec(None, None, axis), PartitionSpec(None, axis)
        return Packed(
            places=Places(*[_EVERY] * len(Places._fields)),
            schedules={kind: Schedule(by_slot, by_slot, by_slot, by_lane) for kind in packed.schedules},
            streamed=jax.tree.map(lambda x: by_lane if self.loops > 1 else _EVERY, packed.streamed),
        )


def aligned(columns: Columns) -> Columns:
    """Copies aligned so that JAX on CPU uses them in place, on all devices."""

    def copied(x: np.ndarray) -> np.ndarray:
        room = np.empty(x.nbytes + _ALIGNED, np.uint8)
        first = -room.ctypes.data % _ALIGNED
        copy = room[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
        copy[...] = x
        return copy

    return jax.tree.map(copied, columns)


def split(shape: tuple[int, ...], axis: str, parts: int) -> PartitionSpec:
    """The split of a model's array over `parts` devices: along its longest dimension that they divide; small
    arrays are not split."""
    fits = [d for d, n in enumerate(shape) if n % parts == 0 and n >= parts]
    if len(shape) < 2 or not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda d: (shape[d], d))
    return PartitionSpec(*(axis if d == longest else None for d in range(len(shape))))
