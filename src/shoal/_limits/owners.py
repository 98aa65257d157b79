"""``OWNER``: the key, or the share, of a limit by whose run it is."""

from __future__ import annotations

from typing import NoReturn, final

from shoal._errors.exceptions import BadUse


@final
class RunOwner:
    """The type of ``OWNER``."""

    __module__ = "shoal"  # pickles name it so, wherever it is defined

    __slots__ = ()

    def __call__(self, _state: object) -> NoReturn:
        """Refuse to be called: a state doesn't say whose run it is of.

        Raises:
            BadUse: Always.
        """
        msg = (
            "OWNER stands where limits take a key or a share: Limits(..., by=OWNER), "
            "Limits(..., share=OWNER), Budget(..., by=OWNER). It can't be called, and it is no key "
            "of a Breaker: a state doesn't say whose run it is of"
        )
        raise BadUse(msg)

    def __reduce__(self) -> str:
        return "OWNER"  # a copy is the same object, which limits are compared with

    def __repr__(self) -> str:
        return "OWNER"


OWNER = RunOwner()
"""The owner of a run as the key of a limit: ``Limits(4, by=OWNER)``.

Whatever ``run(owner=...)`` says, and all that is below: the state needn't have it. Runs without an
owner have one key together, ``""``. It stands for ``by=`` and ``share=`` of ``Limits``, and for
``by=`` of a ``Budget``. The weights of owners are given by their names:
``Limits(100, share=OWNER, weight={"acme": 3})``.
"""
