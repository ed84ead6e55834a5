"""Where arrays lie on a mesh of devices: lanes over its first axis, the model inside each lane over its second.

    one axis     each device runs its own lanes in a loop of its own; one sum merges what they bring together
    two axes     one program over all lanes, which XLA partitions both ways by where its arguments lie

>>> split((10, 64, 32), "model", 8)
P(None, 'model', None)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_core.lanes.pack import Schedule
from fedjax_core.lanes.program import Packed, Places

_EVERY: Any = PartitionSpec()


class Placing:
    """Where the state and the arrays of a dispatch lie, and how a program is spread; for one device where there is no mesh."""

    def __init__(self, mesh: Mesh | None) -> None:
        if mesh is not None and len(mesh.axis_names) > 2:
            raise ValueError(f"mesh must have one axis, for lanes, or a second one, for the model; this one has {mesh.axis_names}")
        # Of its axes XLA decides what lies where: a model is written without knowing of them.
        self.mesh = None if mesh is None else Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
        self.devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
        """Over how many devices the lanes are spread."""
        self.parts = 1 if mesh is None or len(mesh.axis_names) == 1 else mesh.shape[mesh.axis_names[1]]
        """Over how many devices the model inside a lane is split."""
        self.loops = 1 if self.parts > 1 else self.devices
        """How many loops run side by side, each with the examples of its own lanes."""

    @property
    def axis(self) -> str | None:
        """The mesh axis over which loops meet, None where there is one loop."""
        return None if self.mesh is None or self.parts > 1 else self.mesh.axis_names[0]

    @property
    def everywhere(self) -> NamedSharding | None:
        """The same on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, _EVERY)

    def state(self, state: Any) -> Any:
        """Where each leaf of a state lies."""
        if self.mesh is None or self.parts == 1:
            return jax.tree.map(lambda x: self.everywhere, state)
        mesh, axis = self.mesh, self.mesh.axis_names[1]
        return jax.tree.map(lambda x: NamedSharding(mesh, split(jnp.shape(x), axis, self.parts)), state)

    def place(self, state: Any, packed: Packed) -> tuple[Any, Packed]:
        """The state and the arrays of a dispatch where they belong."""
        if self.mesh is None:
            return state, packed
        mesh = self.mesh
        return jax.device_put(state, self.state(state)), jax.device_put(
            packed, jax.tree.map(lambda spec: NamedSharding(mesh, spec), self._specs(packed))
        )

    def spread(self, rounds: Callable[..., tuple[Any, Any]], packed: Packed) -> Callable[..., tuple[Any, Any]]:
        """`rounds(data, count, state, packed)` on all devices; `packed` for its shapes."""
        if self.mesh is None:
            return rounds
        if self.parts > 1:

            def partitioned(data: Any, count: Any, state: Any, packed: Packed) -> tuple[Any, Any]:
                state, metrics = rounds(data, count, state, packed)
                return lax.with_sharding_constraint(state, self.state(state)), metrics

            return partitioned
        specs = (_EVERY, _EVERY, _EVERY, self._specs(packed))
        return jax.shard_map(rounds, mesh=self.mesh, in_specs=specs, out_specs=_EVERY, axis_names={self.axis}, check_vma=False)

    def _specs(self, packed: Packed) -> Packed:
        """How the arrays of a dispatch are spread over the axis of lanes."""
        assert self.mesh is not None
        axis = self.mesh.axis_names[0]
        by_slot, by_lane = PartitionSpec(None, None, axis), PartitionSpec(None, axis)
        return Packed(
            places=Places(_EVERY, _EVERY, _EVERY, _EVERY),
            schedules={kind: Schedule(by_slot, by_slot, by_slot, by_lane) for kind in packed.schedules},
            streamed=jax.tree.map(lambda x: by_lane if self.loops > 1 else _EVERY, packed.streamed),
        )


def split(shape: tuple[int, ...], axis: str, parts: int) -> PartitionSpec:
    """How an array of the model is split over `parts` devices: along its longest dimension that can be; small ones are not."""
    fits = [d for d, n in enumerate(shape) if n % parts == 0 and n >= parts]
    if len(shape) < 2 or not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda d: (shape[d], d))
    return PartitionSpec(*(axis if d == longest else None for d in range(len(shape))))
