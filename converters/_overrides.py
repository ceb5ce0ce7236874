"""A policy's overrides, tried on the operators of a model."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from edgeexport.errors import RecipeError
from edgeexport.policy import Policy, Scheme


class Matcher:
    """Finds each operator's scheme, and the overrides that found no operator."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._unused = {override.match for override in policy.overrides}

    def scheme(self, operator: str, names: Iterable[str]) -> tuple[Scheme, bool]:
        """How an operator is computed, and whether an override says so of operators by their type.

        Args:
            operator: its type, such as ``MatMul``.
            names: its module, and what its weights and outputs are called.
        """
        scheme, by_type = self._policy.default, False
        for override in self._policy.overrides:
            by_type_too = fnmatchcase(f"op:{operator}", override.match)
            if by_type_too or any(fnmatchcase(name, override.match) for name in names):
                scheme, by_type = override.scheme, by_type_too
                self._unused.discard(override.match)
        return scheme, by_type

    def require_used(self) -> None:
        """To be called when all operators were seen.

        Raises:
            RecipeError: an override matched none; it would silently do nothing.
        """
        if self._unused:
            raise RecipeError(f"The override '{min(self._unused)}' matches no operator of the model.",
                              hint="`edgeexport inspect` shows the names; a module's path matches as a shell pattern, such as '*.layer.0.*'")
