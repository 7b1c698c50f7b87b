"""How surprising texts are to a causal language model, many at once.

    loss = −Σ log p(token t | tokens before t)     over the scored t; nothing foretells a text's first token

Texts are read in batches of like length, padded on the right, where a causal model reads nothing. Variants
of a record that differ only at their end are read *together*: what they share goes through the model once,
and its keys and values serve all of them.
"""

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from marshtest.kit.records.base import Floats
from marshtest.kit.texts.base import shared
from marshtest.plumbing.device import exact_float32
from marshtest.plumbing.errors import MarshtestError, refused

TOKENS = {"cpu": 2**12, "cuda": 2**16}  # in one forward pass
BYTES = {"cpu": 2**28, "cuda": 2**31}  # of the largest tensor of a pass: logits, or keys and values
PIECE = {"cpu": 2**21, "cuda": 2**30}  # bytes of logits whose losses are computed at once
UNASKED = -100  # stands for a token whose loss is not asked
TOGETHER = 8  # variants from which on a shared beginning is read once
SAME = 1e-3  # nats by which losses may differ when a beginning is shared


@dataclass(frozen=True)
class Tokens:
    """A text as a model reads it."""

    ids: tuple[int, ...]
    scored: int  # tokens from this one on count
    group: int = 0  # variants of one record share it
    copy: int = 0  # number of times that the same text was asked before: each time it is read anew

    @property
    def first(self) -> int:
        """The first token whose surprise counts."""
        return max(1, self.scored)


class Scorer:
    """Tells how surprising texts are to a causal model of `transformers`, in eval mode on a device.

    Raises:
        MarshtestError: the model reads ahead.
    """

    def __init__(self, name: str, model: Any, device: torch.device) -> None:
        self.name, self.model, self.device = name, model.to(device).eval(), device
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.shares: bool | None = None  # whether beginnings can be shared: tried out at the first
        kind = device.type
        self.tokens, self.bytes, self.piece = TOKENS[kind], BYTES[kind], PIECE[kind]
        self._refuse_reading_ahead()

    def __call__(self, texts: Sequence[Tokens]) -> Floats:
        """[B] losses of texts in nats; equal tokens have equal losses."""
        losses: dict[Tokens, float] = dict.fromkeys(texts, 0.0)
        groups: dict[int, list[Tokens]] = defaultdict(list)
        for text in losses:
            groups[text.group].append(text)
        alone = []
        with torch.inference_mode(), exact_float32():
            for run in (run for group in groups.values() for run in runs(group)):
                if self._may_share(run):
                    losses |= self._together(run)
                else:
                    alone += run
            losses |= self._alone(alone)
        answers = np.array([losses[text] for text in texts], np.float64)
        if bad := int(np.isnan(answers).sum()):
            raise MarshtestError(f"{self.name}: answered NaN for {bad} of {len(texts)} texts.")
        return answers

    def _alone(self, texts: Sequence[Tokens]) -> dict[Tokens, float]:
        """The losses of texts that share nothing."""
        losses: dict[Tokens, float] = {}
        ordered = sorted(texts, key=lambda text: len(text.ids), reverse=True)
        while ordered:
            rows = self._rows(len(ordered[0].ids))
            batch, ordered = ordered[:rows], ordered[rows:]
            first = min(text.first for text in batch)
            ids = self._padded([text.ids for text in batch])
            if first >= ids.shape[1]:  # no token counts
                losses |= dict.fromkeys(batch, 0.0)
                continue
            logits, _ = self._logits(ids, ids.shape[1] - first + 1)
            surprise = self._surprises(logits, ids[:, first:])
            losses |= self._summed(batch, surprise, first)
        return losses

    def _together(self, texts: Sequence[Tokens]) -> dict[Tokens, float]:
        """The losses of texts that begin alike, whose beginning is read once."""
        begun = common(texts)
        first = min(begun, *(text.first for text in texts))
        beginning = self._padded([texts[0].ids[:begun]])
        logits, cache = self._logits(beginning, begun - first + 1, use_cache=True)
        surprise = self._surprises(logits, beginning[:, first:])
        losses = self._summed(texts, surprise.expand(len(texts), -1), first)
        held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
        longest = max(len(text.ids) for text in texts) - begun
        rows = max(1, min(self._rows(longest), self.bytes // max(1, held)))
        for start in range(0, len(texts), rows):
            batch = texts[start : start + rows]
            ids = self._padded([text.ids[begun:] for text in batch])
            repeated = copy.deepcopy(cache)
            repeated.batch_repeat_interleave(len(batch))
            following, _ = self._logits(ids, ids.shape[1], use_cache=True, past_key_values=repeated)
            last = logits[:, -1].expand(len(batch), -1)
            foretold = F.cross_entropy(last.float(), ids[:, 0], reduction="none").double()
            surprise = torch.cat([foretold[:, None], self._surprises(following, ids[:, 1:])], 1)
            for text, loss in self._summed(batch, surprise, begun).items():
                losses[text] += loss
        return losses

    def _may_share(self, texts: Sequence[Tokens]) -> bool:
        """Whether a shared beginning is worth reading apart, and the model's own cache can do it."""
        if self.shares is False or len(texts) < TOGETHER:
            return False
        if self.shares is None:
            self.shares = self._agrees(texts[:2])
        return self.shares

    def _agrees(self, texts: Sequence[Tokens]) -> bool:
        """Whether texts have the same losses together as alone."""
        alone = self._alone(texts)
        try:
            together = self._together(texts)
        except Exception:  # a cache of another kind, or none: its family's own errors
            return False
        return all(abs(together[text] - alone[text]) <= SAME for text in texts)

    def _logits(
        self, ids: Tensor, keep: int, use_cache: bool = False, **options: Any
    ) -> tuple[Tensor, Any]:
        """[B, keep, V] logits at the last tokens of ids [B, T], and the cache of keys and values."""
        if self.keeps:
            options["logits_to_keep"] = keep
        answer = self.model(input_ids=ids, use_cache=use_cache, **options)
        return answer.logits[:, -keep:], answer.get("past_key_values")

    def _surprises(self, logits: Tensor, ids: Tensor) -> Tensor:
        """[B, S] −log p of tokens [B, S] under logits [B, S + 1, V], in float64; the last are not asked."""
        # Logits are not cut by the last token, but its target left out: a cut would copy them.
        targets = F.pad(ids, (0, 1), value=UNASKED).flatten()
        flat, rows = logits.flatten(0, 1), max(1, self.piece // (4 * self.vocabulary))
        losses = [  # in pieces that stay in a processor's cache: five times as fast
            F.cross_entropy(piece.float(), wanted, ignore_index=UNASKED, reduction="none")
            for piece, wanted in zip(flat.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(losses).view(logits.shape[:2])[:, :-1].double()

    def _rows(self, length: int) -> int:
        """Number of texts of a length that are read at once."""
        vocabulary = self.model.config.get_text_config().vocab_size
        fitting = min(
            self.tokens // max(1, length), self.bytes // (4 * vocabulary * max(1, length))
        )
        return max(1, int(fitting))

    def _padded(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """[B, T] ids, padded on the right with any token."""
        rows = np.zeros((len(ids), max(map(len, ids))), np.int64)
        for row, tokens in zip(rows, ids, strict=True):
            row[: len(tokens)] = tokens
        return torch.from_numpy(rows).to(self.device)

    def _summed(self, texts: Sequence[Tokens], surprise: Tensor, start: int) -> dict[Tokens, float]:
        """Sums of the surprises [B, S] of tokens from `start` on that count."""
        place = start + torch.arange(surprise.shape[1], device=surprise.device)
        first = torch.tensor([[text.first] for text in texts], device=surprise.device)
        end = torch.tensor([[len(text.ids)] for text in texts], device=surprise.device)
        counts = (first <= place) & (place < end)
        sums = torch.where(counts, surprise, 0.0).sum(1).tolist()
        return dict(zip(texts, sums, strict=True))

    @torch.inference_mode()
    def _refuse_reading_ahead(self) -> None:
        ids = torch.zeros(2, 4, dtype=torch.int64, device=self.device)
        ids[1, -1] = 1
        with refused(f"{self.name}: does not take token ids"), exact_float32():
            one, other = self._logits(ids, 4)[0][:, :-1].float()
        if (one - other).abs().max() > 1e-5 * one.abs().max():
            raise MarshtestError(
                f"{self.name}: reads tokens ahead, so it is no causal language model and has no −log p "
                "of a text."
            )


def common(texts: Sequence[Tokens]) -> int:
    """Number of leading tokens that all texts share, at least one less than each of them has."""
    # What the first and the last in order share, all between them share.
    ends = min(text.ids for text in texts), max(text.ids for text in texts)
    return min(shared(*ends), min(len(text.ids) for text in texts) - 1)


def runs(texts: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Give the texts of a record in lists whose members share half of their tokens, from the first on."""
    run: list[Tokens] = []
    for text in sorted(texts, key=lambda text: text.ids):  # what begins alike stands together
        if run and common((run[-1], text)) < max(len(run[-1].ids), len(text.ids)) / 2:
            yield run
            run = []
        run.append(text)
    yield run
