"""OWSM's vocabulary: special symbols, BPE pieces, prompts.

The order of a token list is the one that ESPnet's S2T recipes give it: ``<blank> <unk>``, then what the BPE
model holds after its three control symbols (OWSM's special symbols first, text pieces after them), then
``<sos> <eos> <sop>``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgp.backbones.longform import LongForm
from localgp.corpora.languages import is_code, known, like
from localgp.errors import BackboneError, ConfigError

if TYPE_CHECKING:
    from localgp.backbones.base import Forbid

TIME_RESOLUTION = 0.02  # seconds between timestamp symbols
HEAD, TAIL = ("<blank>", "<unk>"), ("<sos>", "<eos>", "<sop>")
NO_TIMESTAMPS = "<notimestamps>"
CTC_CONTEXT = 4.0  # seconds; ESPnet's
CTC_PROMPT = 2  # symbols that OWSM-CTC's encoder is told: language and task
USUAL: Mapping[str, Any] = {}


def time_symbol(seconds: float) -> str:
    """The timestamp symbol nearest to ``seconds``.

    Examples:
        >>> time_symbol(3.207)
        '<3.20>'
    """
    return f"<{round(seconds / TIME_RESOLUTION) * TIME_RESOLUTION:.2f}>"


def special_symbols(languages: Sequence[str], padded_seconds: float | None) -> list[str]:
    """The special symbols of an OWSM BPE model, in its order.

    Args:
        languages: ISO 639-3 codes; each is a source language and a translation target.
        padded_seconds: The last timestamp; None for OWSM-CTC's, which has none, and a language that is not known.
    """
    tasks = [*(f"<{code}>" for code in languages), "<asr>", *(f"<st_{code}>" for code in languages)]
    if padded_seconds is None:
        return ["<na>", "<nolang>", *tasks]
    times = (time_symbol(i * TIME_RESOLUTION) for i in range(round(padded_seconds / TIME_RESOLUTION) + 1))
    return [
        "<na>",
        "<nospeech>",
        *tasks,
        NO_TIMESTAMPS,
        *times,
    ]


def train_bpe(texts: Iterable[str], path: Path, symbols: Sequence[str], pieces: int) -> None:
    """Trains a BPE model with ``symbols`` kept whole and ``pieces`` text pieces.

    Args:
        texts: Sentences.
        path: The model file to write.
    """

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=3 + len(symbols) + pieces,  # <unk> <s> </s>
        user_defined_symbols=list(symbols),
        character_coverage=1.0,
        num_threads=1,  # the same model on every machine
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def read_bpe(path: Path) -> Any:
    """The SentencePiece processor of a model file."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    content = path.read_bytes()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise BackboneError(
            f"{path}: not a SentencePiece model ({error}); copy bpe.model from the model's repository again"
        ) from error
    return processor


def bpe_pieces(path: Path) -> list[str]:
    """Special symbols and text pieces of a BPE model, without its three control symbols."""
    processor = read_bpe(path)
    return [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]


def full_token_list(pieces: Sequence[str]) -> list[str]:
    return [*HEAD, *pieces, *TAIL]


def is_special(token: str) -> bool:
    """Whether a token is a symbol and not text, by ESPnet's convention."""
    return len(token) > 2 and token[0] == "<" and token[-1] == ">"


class OwsmTokenizer:
    """Text to ids and back, and OWSM's prompts.

    Args:
        token_list: The model's tokens in the order of their ids.
        bpe_model: The SentencePiece model file.
        preprocessor: ESPnet's ``preprocessor_conf``, in which a symbol may have a name of its own.

    Raises:
        BackboneError: A symbol that every OWSM model has is not in the token list.

    Examples:
        >>> from localgp.backbones.owsm.files import EMBEDDED
        >>> tokenizer = OwsmTokenizer.embedded()
        >>> [tokenizer.token_list[i] for i in tokenizer.prompt("de", "fr")]
        ['<deu>', '<st_fra>', '<notimestamps>']
        >>> tokenizer.decode(tokenizer.prompt("de", "de") + tokenizer.encode("guten tag."))
        'guten tag.'
    """

    symbols: Mapping[str, str] = {
        "na": "<na>",
        "notime": NO_TIMESTAMPS,
    }  # by their names in preprocessor_conf
    others: Sequence[str] = ("<nospeech>",)  # that there have to be
    knows_times = True

    def __init__(
        self, token_list: Sequence[str], bpe_model: Path, preprocessor: Mapping[str, Any] = USUAL
    ) -> None:
        self.token_list = list(token_list)
        self.bpe_model = Path(bpe_model)
        self._bpe = read_bpe(self.bpe_model)
        self._ids = {token: index for index, token in enumerate(self.token_list)}
        times = [t for t in self.token_list if is_special(t) and t[1:-1].replace(".", "", 1).isdigit()]
        usual = dict(self.symbols)
        if times and self.knows_times:
            usual |= {"first_time": times[0], "last_time": times[-1]}
        named = {name: preprocessor.get(f"{name}_symbol") or symbol for name, symbol in usual.items()}
        needed = (*HEAD, *TAIL, "<asr>", *self.others, *named.values())
        missing = [symbol for symbol in needed if symbol not in self._ids]
        if missing or (self.knows_times and not times):
            raise BackboneError(
                f"the token list ({len(self.token_list)} tokens) is not an OWSM model's: it lacks "
                f"{', '.join(missing) or 'timestamps'}; use an ESPnet S2T model trained in OWSM's format"
            )
        self.blank, self.unk = self._ids["<blank>"], self._ids["<unk>"]
        self.sos, self.eos, self.sop = (self._ids[symbol] for symbol in TAIL)
        self._named = {name: self._ids[symbol] for name, symbol in named.items()}
        self.na, self.notimestamps = self._named["na"], self._named.get("notime", -1)
        self.first_time, self.last_time = self._named.get("first_time", 0), self._named.get("last_time", -1)
        asr = self._ids["<asr>"]
        control = {*HEAD, *TAIL, *times, *named.values(), "<nospeech>", "<asr>", NO_TIMESTAMPS}
        before = [token for token in self.token_list[:asr] if is_special(token) and token not in control]
        behind = takewhile(is_special, self.token_list[asr:])
        named_so = [token[1:-1] for token in (*before, *behind) if token not in control]
        languages = {
            token[1:-1] for token in before if is_code(token[1:-1])
        }  # two letters in v1 and v2, then three
        self.languages = [name for name in named_so if name in languages]
        others = (name for name in named_so if name not in languages)
        self.translates_into: Sequence[str] | None = None
        self.tasks: Sequence[str] = [name for name in others if not name.startswith("st_")]
        self.language_ids = [self._ids[f"<{language}>"] for language in self.languages]
        self.start = [self.sos]
        self.long_form = LongForm(no_speech=self._ids.get("<nospeech>"))

    @classmethod
    def embedded(cls) -> OwsmTokenizer:
        """The tokenizer of the mini backbone."""
        from localgp.backbones.owsm.files import EMBEDDED

        path = EMBEDDED / "bpe.model"
        return cls(full_token_list(bpe_pieces(path)), path)

    def __len__(self) -> int:
        return len(self.token_list)

    def encode(self, text: str) -> list[int]:
        """Text to ids. Unknown pieces become ``<unk>``."""
        return [self._ids.get(piece, self.unk) for piece in self._bpe.EncodeAsPieces(text)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Ids to text.

        Args:
            skip_special: Leave out every symbol (prompt, timestamps, ``<unk>``); else they stand in the text.
        """
        tokens = [self.token_list[i] for i in ids]
        if skip_special:
            tokens = [token for token in tokens if not is_special(token)]
        return self._bpe.DecodePieces(tokens).strip()

    def timestamp(self, seconds: float) -> int:
        """The id of the timestamp nearest to ``seconds``; the last one for what lies behind it."""
        return min(self.first_time + round(seconds / TIME_RESOLUTION), self.last_time)

    def prompt(self, language: str, target: str, *, timestamps: bool = False) -> list[int]:
        """What the decoder is given after ``<sos>``.

        Args:
            language: What is spoken, ``de``, ``deu`` or whatever `localgp.corpora.languages.canonical` takes.
            target: What is written, the language itself for ASR; or the symbol of one of `tasks`.
            timestamps: Leave out ``<notimestamps>``, so that the model begins with a timestamp.

        Raises:
            ConfigError: A language that this model does not have.
        """
        source, task = self._spoken(language), target
        if not is_special(target):
            written = self._spoken(target)
            task = "<asr>" if written == source else f"<st_{written[1:]}"
        if task not in self._ids:
            targets = like(target, [t[4:-1] for t in self.token_list if t.startswith("<st_")])
            raise ConfigError(
                f"this model does not translate into {target!r}: valid targets are {', '.join(targets)}"
            )
        ids = [self._ids[source], self._ids[task]]
        return ids if timestamps or not self.knows_times else [*ids, self.notimestamps]

    def _spoken(self, language: str) -> str:
        """A language's symbol."""
        return f"<{self.code(language)}>"

    def previous(self, text: Sequence[int], longest: int) -> list[int]:
        """``<sop> text before``, at most half of the positions; nothing where there is none."""
        return [self.sop, *text[-(longest // 2 - 1) :]] if text else []

    def code(self, language: str) -> str:
        """ISO 639-3, from whatever `localgp.corpora.languages.canonical` takes.

        Raises:
            ConfigError: A language that this model does not have.
        """
        return known(language, self.languages)

    def rules(self, primers: list[list[int]]) -> Forbid:
        """OWSM's on time symbols."""
        from localgp.backbones.rules import TimestampRules

        times = TimestampRules(self.sos, self.eos, self.notimestamps, self.first_time, self.last_time)
        return times.of(primers)


class OwsmCtcTokenizer(OwsmTokenizer):
    """OWSM-CTC's: prompts are its encoder's, there are no times, and the language may be left open (``""``)."""

    symbols: Mapping[str, str] = {"na": "<na>", "nolang": "<nolang>"}
    others: Sequence[str] = ()
    knows_times = False

    def __init__(
        self, token_list: Sequence[str], bpe_model: Path, preprocessor: Mapping[str, Any] = USUAL
    ) -> None:
        super().__init__(token_list, bpe_model, preprocessor)
        self.start = []
        self.long_form = LongForm(context=CTC_CONTEXT)

    def _spoken(self, language: str) -> str:
        return super()._spoken(language) if language else self.token_list[self._named["nolang"]]

    def previous(self, text: Sequence[int], longest: int) -> list[int]:
        """The text by itself."""
        return list(text[-(longest // 2) :])
