"""Speech foundation models, a folder for each family.

Adding a family takes its folder and a line in `FAMILIES`; `localgp.backbones.base` says what it has to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localgp.archive import opened
from localgp.errors import BackboneError

if TYPE_CHECKING:
    from localgp.backbones.base import Backbone, Tokens


class Family(Protocol):
    """What a family's folder has; importing it takes no time.

    Attributes:
        KEY: Its `Backbone.key`.
        NAMES: Published models, by the name of their configuration.
        PARTS: Of an encoder's layer, what can be gated.
        WHOLE: Of these, what sees its neighbours, and is gated per utterance.
        CTC: Whether its models have a CTC output layer.
        RANKING: Of hypotheses, where nothing else is asked for (`localgp.search.options.DecodeOptions`).
        HUB: Words that the Hugging Face ids of its models have.
    """

    KEY: str
    NAMES: tuple[str, ...]
    PARTS: tuple[str, ...]
    WHOLE: tuple[str, ...]
    CTC: bool
    RANKING: str
    HUB: tuple[str, ...]

    def recognises(self, directory: Path) -> bool:
        """Whether a directory holds a model of this family."""

    def read_vocabulary(self, cfg: Mapping[str, Any]) -> tuple[Tokens, float]:
        """Vocabulary and seconds of input of such a model, whose weights are left unread; without PyTorch."""

    def open_model(self, cfg: Mapping[str, Any]) -> Backbone:
        """The model that ``cfg`` (`open_backbone`) means."""

    def holds(self, model: Any) -> bool:
        """Whether an object is a model of this family as its own library has it."""

    def adopt(self, model: Any, vocabulary: Any = None) -> Backbone:
        """Such an object behind the seam; it is the same object, not a copy.

        Args:
            vocabulary: What has its tokens, where it does not say so itself.
        """


FAMILIES: dict[str, str | Family] = {"owsm": "localgp.backbones.owsm", "whisper": "localgp.backbones.whisper"}
"""Name to the folder, or to an object of the same use."""


def families() -> dict[str, Family]:
    return {
        name: import_module(given) if isinstance(given, str) else given for name, given in FAMILIES.items()
    }


def family_of(path: str, name: str) -> Family:
    """The family of a model: by the files of a directory or archive, else by name, else by the words of a hub id.

    Args:
        path, name: Of the backbone's configuration.

    Raises:
        BackboneError: A directory that no family knows, where there are several.
    """
    known = families()
    directory = opened(path)
    if directory.is_dir():
        found = [family for family in known.values() if family.recognises(directory)]
    else:
        found = [family for family in known.values() if name in family.NAMES]
        found = found or [
            family for family in known.values() if any(word in path.lower() for word in family.HUB)
        ]
    if len(found) > 1:
        raise BackboneError(f"{path} may be of several families; keep the files of one model in it")
    return found[0] if found else known["owsm"]  # which says what is missing there


def adopt(model: Any, vocabulary: Any = None) -> Backbone:
    """The backbone of a model that is there already; see `Family.adopt`.

    Raises:
        BackboneError: It is of no family.
    """
    for family in families().values():
        if family.holds(model):
            return family.adopt(model, vocabulary)
    raise BackboneError(
        f"{type(model).__name__} is no model that can be gated; valid: WhisperForConditionalGeneration of "
        "transformers, ESPnetS2TModel or Speech2Text (espnet2.bin.s2t_inference) of ESPnet"
    )


def open_backbone(cfg: Mapping[str, Any]) -> Backbone:
    """Builds a backbone and loads its weights.

    Args:
        cfg: ``name``; ``path``: ``embedded``, a directory, an archive of one or a Hugging Face repository id;
            ``weights``: ``pretrained``, or ``random`` for the same shape with random weights, for which nothing is
            downloaded when the shape is known by ``name``; ``checkpoint``: of several in a directory, the one to take.

    Raises:
        BackboneError: A model that is missing, incomplete, unsafe or of another kind.
        ConfigError: ``weights`` is neither of the two.
    """
    return family_of(str(cfg["path"]), str(cfg["name"])).open_model(cfg)
