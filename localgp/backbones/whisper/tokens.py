"""Whisper's vocabulary: byte-level BPE pieces, symbols, prompts.

Text comes first, then ``<|endoftext|>``, the symbols of prompts, and times of 0.02 s up to 30 s.

    <|startofprev|> text before <|startoftranscript|> <|de|> <|transcribe|> <|notimestamps|> text <|endoftext|>
    `---- where there is one ---'                     `- a model of English has neither -'"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgp.backbones.longform import LongForm
from localgp.corpora.languages import known
from localgp.errors import BackboneError

if TYPE_CHECKING:
    from localgp.backbones.base import Forbid

END, START, PREVIOUS, NO_TIMES = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|startofprev|>",
    "<|notimestamps|>",
)
TRANSCRIBE, TRANSLATE = "<|transcribe|>", "<|translate|>"
TOKENIZER_FILE, GENERATION_FILE = "tokenizer.json", "generation_config.json"
ENGLISH = 51_864
TIMES = 1501
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
LANGUAGES = (  # in the order of their symbols
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi "
    "ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd "
    "gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)


class WhisperTokens:
    """Text to ids and back, and Whisper's prompts.

    Args:
        tokenizer: Of the library ``tokenizers``.
        generation: What the model's generation_config.json says.

    Raises:
        BackboneError: A symbol that every Whisper has is not there.

    Examples:
        >>> tokens = WhisperTokens.placeholder(51865)
        >>> [tokens.token_list[i] for i in tokens.prompt("deu", "deu")]
        ['<|de|>', '<|transcribe|>', '<|notimestamps|>']
        >>> [tokens.token_list[i] for i in tokens.prompt("de", "en", timestamps=True)]
        ['<|de|>', '<|translate|>']
        >>> tokens.decode(tokens.prompt("de", "de") + tokens.encode("guten tag."))
        'guten tag.'
    """

    na, blank = -1, -1
    tasks: Sequence[str] = ()  # but transcribing and translating
    translates_into: Sequence[str] | None = ("en",)

    def __init__(self, tokenizer: Any, generation: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a text that says "<|endoftext|>" is a text
        given = generation or {}
        ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._ids = ids
        missing = [symbol for symbol in (END, START, PREVIOUS, NO_TIMES) if symbol not in ids]
        if missing:
            raise BackboneError(f"the tokenizer is not Whisper's: it lacks {', '.join(missing)}")
        self.token_list = [f"<unused_{i}>" for i in range(max(ids.values()) + 1)]
        for token, index in ids.items():
            self.token_list[index] = token
        self.eos, self.prev, self.notimestamps = ids[END], ids[PREVIOUS], ids[NO_TIMES]
        self.start = [ids[START]]
        self.first_time, self.last_time = self.notimestamps + 1, self.notimestamps + TIMES
        self.long_form = LongForm(
            by_pairs=True,
            temperatures=TEMPERATURES,
            no_speech=self.notimestamps - 1,  # <|nospeech|>, once <|nocaptions|>
        )
        self.multilingual = bool(given.get("is_multilingual", len(ids) != ENGLISH))
        between = self.token_list[ids[START] + 1 : ids.get(TRANSLATE, ids[START])]
        self.languages = [token[2:-2] for token in between if re.fullmatch(r"<\|[a-z]{2,3}\|>", token)]
        if not self.multilingual:  # it has the others' symbols, and never learnt them
            self.languages = ["en"]
        self._never, self._never_first = (
            sorted(i for i in given.get(name) or () if 0 <= i < len(self.token_list))
            for name in ("suppress_tokens", "begin_suppress_tokens")
        )
        self._latest_first: int | None = given.get("max_initial_timestamp_index")
        self.language_ids = [ids[f"<|{language}|>"] for language in self.languages]

    @classmethod
    def read(cls, directory: Path) -> WhisperTokens:
        """Of a model's directory."""
        from tokenizers import Tokenizer

        file = directory / TOKENIZER_FILE
        if not file.is_file():
            raise BackboneError(f"{file} is missing; copy the whole model again")
        generation = directory / GENERATION_FILE
        given = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        try:
            return cls(Tokenizer.from_file(str(file)), given)
        except BackboneError:
            raise
        except Exception as error:  # the library has no class of its own for them
            raise BackboneError(f"{file}: not a tokenizer ({error}); copy it again") from error

    @classmethod
    def placeholder(cls, vocabulary: int) -> WhisperTokens:
        """A vocabulary of a published size without the published BPE: bytes, named rows, and Whisper's symbols."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        languages = LANGUAGES.split()[: 99 + (vocabulary > ENGLISH + 1)]
        symbols = [
            END,
            START,
            *(f"<|{language}|>" for language in languages),
            TRANSLATE,
            TRANSCRIBE,
            "<|startoflm|>",
            PREVIOUS,
            "<|nospeech|>",
            NO_TIMES,
            *(f"<|{i * 0.02:.2f}|>" for i in range(TIMES)),
        ]
        pieces = [*alphabet, *(f"<unused_{i}>" for i in range(vocabulary - len(symbols) - len(alphabet)))]
        tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(symbol, special=True) for symbol in symbols])
        return cls(tokenizer)

    def write(self, folder: Path) -> None:
        """Into a model's directory."""
        self._tokenizer.save(str(folder / TOKENIZER_FILE))
        about = {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor"}
        about |= dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
        text = json.dumps(about, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def __len__(self) -> int:
        return len(self.token_list)

    def encode(self, text: str) -> list[int]:
        """Text to ids, with the blank that Whisper begins a text with."""
        text = text.strip()
        ids: list[int] = self._tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Ids to text.

        Args:
            skip_special: Leave out every symbol; else they stand in the text.
        """
        kept = [i for i in ids if i < self.eos] if skip_special else list(ids)
        text: str = self._tokenizer.decode(kept, skip_special_tokens=skip_special)
        return text.strip()

    def prompt(self, language: str, target: str, *, timestamps: bool = False) -> list[int]:
        """What the decoder is given after ``<|startoftranscript|>``.

        A transcript is ``<|de|> <|transcribe|>``, a translation into English ``<|de|> <|translate|>``. One into another
        language is what Whisper has no prompt for; models fine-tuned here are given that language's
        ``<|fr|> <|transcribe|>``, as if it were spoken: text in French is what the decoder learnt behind it. A model of
        English alone has neither symbol.

        Args:
            language: What is spoken, in whatever form `localgp.corpora.languages.canonical` takes.
            target: What is written; the language itself for ASR.
            timestamps: Leave out ``<|notimestamps|>``, so that the model begins with a time.

        Raises:
            ConfigError: A language that this model does not have.
        """
        source, written = self.code(language), self.code(target)
        task = TRANSLATE if written == "en" != source else TRANSCRIBE
        named = source if task == TRANSLATE else written
        ids = [self._ids[f"<|{named}|>"], self._ids[task]] if self.multilingual else []
        return ids if timestamps else [*ids, self.notimestamps]

    def previous(self, text: Sequence[int], longest: int) -> list[int]:
        """What stands before ``<|startoftranscript|>`` where there is text before: its end, as Whisper was trained.

        Args:
            text: Its ids; times may be among them.
            longest: Positions of the decoder, half of which are for it.
        """
        return [self.prev, *text[-(longest // 2 - 1) :]] if text else []

    def code(self, language: str) -> str:
        """Whisper's code of a language, from whatever `localgp.corpora.languages.canonical` takes.

        Raises:
            ConfigError: A language that this model does not have.
        """
        return known(language, self.languages)

    def rules(self, primers: Sequence[Sequence[int]]) -> Forbid:
        """See `localgp.backbones.whisper.rules.Rules`.

        Args:
            primers: All with times, or all without.
        """
        from localgp.backbones.whisper.rules import Rules

        timed = {self.notimestamps not in primer for primer in primers}
        if len(timed) > 1:
            raise ValueError("utterances with and without times cannot be decoded together")
        return Rules(
            self.eos, self.notimestamps, self._never, self._never_first, self._latest_first, True in timed
        )
