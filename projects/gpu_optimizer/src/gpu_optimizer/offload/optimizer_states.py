"""An optimizer's state waits in the host's memory between its steps.

The step is done for a part of the parameters at a time, while the next part's state comes and the
last one's goes. So the device holds the state of three parts at most, and none at all while forward
and backward pass need their peak. What moves is the whole state, both ways, once per step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gpu_optimizer.offload.links import Link, Parcel, link_of

_PART_BYTES: Final = 256 << 20
# Adam and its kin keep two values per parameter; the others need less than is counted.
_N_STATES: Final = 2


@dataclass(slots=True, eq=False)
class _Part:
    """Parameters of one group that are updated together."""

    group: dict[str, Any]
    parameters: list[Tensor] = field(default_factory=list)
    size_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Away:
    """A tensor of the state that is on the host."""

    parcel: Parcel
    shape: torch.Size
    coming: Tensor | None = None


class OptimizerStateOffload:
    """Keeps an optimizer's state off the device between steps.

    The values are those of the plain optimizer, bit by bit. Hooks on the optimizer's step run once
    for every part. `state_dict` and `load_state_dict` work as ever, but what a state dict holds is
    valid until the next step: copy what is kept longer.

    Parameters
    ----------
    optimizer
        One of PyTorch's, or another whose state belongs to single parameters.
    link
        To the host; None: that of the parameters' device, measured now.
    part_bytes
        State that is on the device at once, roughly, three times.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        link: Link | None = None,
        part_bytes: int = _PART_BYTES,
    ) -> None:
        self.optimizer = optimizer
        first = next(p for group in optimizer.param_groups for p in group["params"])
        self.link = link or link_of(first)
        self.part_bytes = part_bytes
        self._away: dict[Tensor, dict[str, _Away]] = {}
        self._active = False
        self._plain_step: Callable[..., Any] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def away_bytes(self) -> int:
        """How much of the state is on the host."""
        states = (each for states in self._away.values() for each in states.values())
        return sum(each.parcel.size_bytes for each in states)

    def apply(self) -> None:
        """Move the state there is, and from now on all state after each step."""
        if self._active:
            return
        self._active = True
        if self._plain_step is None:
            self._plain_step = self.optimizer.step
            # Bound to the optimizer, because schedulers bind it again.
            step = MethodType(lambda _, closure=None: self._step(closure), self.optimizer)
            self.optimizer.step = step  # type: ignore[method-assign]
        self._handles = [
            self.optimizer.register_state_dict_pre_hook(self._finish_copies),
            self.optimizer.register_load_state_dict_post_hook(self._forget),
        ]
        for part in self._parts():
            self._send(part)

    def undo(self) -> None:
        """Bring the state back, and keep it on the device from now on."""
        if not self._active:
            return
        self._active = False
        for part in self._parts():
            self._fetch(part)
            self._arrive(part)
        for handle in self._handles:
            handle.remove()

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- as PyTorch's
        """Update all parameters, part by part."""
        if not self._active and self._plain_step is not None:
            # A scheduler may have wrapped this function, so it cannot be taken away again.
            return self._plain_step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups, parts = self.optimizer.param_groups, list(self._parts())
        whole = [(group, group["params"]) for group in groups]
        if parts:
            self._fetch(parts[0])
        try:
            for part, following in zip(parts, [*parts[1:], None], strict=True):
                if following is not None:
                    self._fetch(following)
                self._arrive(part)
                self._update(part)
                self._send(part)
        finally:
            self.optimizer.param_groups = groups
            for group, parameters in whole:
                group["params"] = parameters
        return loss

    def _update(self, part: _Part) -> None:
        if self._plain_step is None:
            raise RuntimeError("the optimizer's state is not offloaded")
        part.group["params"] = part.parameters
        self.optimizer.param_groups = [part.group]
        self._plain_step()

    def _parts(self) -> Iterator[_Part]:
        for group in self.optimizer.param_groups:
            part = _Part(group)
            for parameter in group["params"]:
                if part.parameters and part.size_bytes >= self.part_bytes:
                    yield part
                    part = _Part(group)
                part.parameters.append(parameter)
                part.size_bytes += parameter.nbytes * _N_STATES
            if part.parameters:
                yield part

    def _send(self, part: _Part) -> None:
        """Begin to move a part's state to the host."""
        sent: list[Parcel] = []
        for parameter in part.parameters:
            state = self.optimizer.state.get(parameter, {})
            for name, value in state.items():
                if _moves(parameter, value) and (parcel := self._begin(value)) is not None:
                    self._away.setdefault(parameter, {})[name] = _Away(parcel, value.shape)
                    sent.append(parcel)
                    # Readable there, once the copy has ended: a state dict may be asked for.
                    state[name] = _on_host(parcel, value.shape)
        for parcel in sent:
            self.link.let_go(parcel)

    def _begin(self, value: Tensor) -> Parcel | None:
        return self.link.send(value.detach().reshape(-1))

    def _fetch(self, part: _Part) -> None:
        """Begin to bring a part's state back."""
        for parameter in part.parameters:
            for each in self._away.get(parameter, {}).values():
                if each.coming is None:
                    each.coming = self.link.fetch(each.parcel)

    def _arrive(self, part: _Part) -> None:
        """Make the state of a part the optimizer's again."""
        for parameter in part.parameters:
            for name, each in self._away.pop(parameter, {}).items():
                self.link.arrive(each.parcel)
                if each.coming is not None:
                    self.optimizer.state[parameter][name] = each.coming.view(each.shape)
                self.link.discard(each.parcel)

    def _finish_copies(self, _: torch.optim.Optimizer) -> None:
        """Wait until all that is on its way to the host can be read there."""
        for states in self._away.values():
            for each in states.values():
                if each.parcel.sent is not None:
                    each.parcel.sent.synchronize()

    def _forget(self, _: torch.optim.Optimizer) -> None:
        """Another state has been loaded; it goes after the next step."""
        for states in self._away.values():
            for each in states.values():
                self.link.discard(each.parcel)
        self._away.clear()


def _moves(parameter: Tensor, value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == parameter.shape
        and value.device == parameter.device
        and value.is_contiguous()
    )


def _on_host(parcel: Parcel, shape: torch.Size) -> Tensor | None:
    return None if parcel.host is None else parcel.host.data.view(parcel.dtype).view(shape)
