"""Owns the loaded model and the loop that answers one request with it.

Everything here belongs to the one thread that made it: MLX's streams are per thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mach_decode.bank_forecast import BankForecast
from mach_decode.errors import EngineBusyError, GenerationCancelledError, TokenizerError
from mach_decode.generation import Generation
from mach_decode.hot_pins import HotPins
from mach_decode.kv_budget import KvBudget
from mach_decode.loaded_model import LoadedModel
from mach_decode.loader import load_swapped
from mach_decode.memory_flags import MemoryFlags
from mach_decode.memory_watch import MemoryState, MemoryWatch, unwatched
from mach_decode.request import GenerationRequest, StepEvent
from mach_decode.route_observer import RouteObservers
from mach_decode.unswapped_loader import load_unswapped
from mach_store.bank_cache import BankCache
from mach_store.errors import DispatchCancelledError
from mach_store.load_progress import LoadListener, unheard

Message = dict[str, Any]

UNSWAPPED = "unswapped"
"""The residency of `--backend openai`: experts, if any, are the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What to load and how.

    Attributes:
        checkpoint: a directory, or the name of an installed checkpoint.
        expert_residency: `streaming`, `stacked` or `bf16_streaming`; `unswapped` is mlx-lm's own model, which
            may be any; None is `stacked` where checkpoint and memory allow it, else `streaming`.
        expert_cache_gb: budget of the expert bank in 10⁹ bytes; None lets the loader choose (streaming only).
        memory_gb: what everything may take together, in 10⁹ bytes; this and the next ones: docs/memory.md.
        prefill_scratch_gb: the arena of long prompts (streaming only).
        kv_cache_gb: keys and values of a prompt and its answer.
        wired_gb: Metal's wired limit (Metal only).
        prefill_chunk: prompt tokens per forward pass; None chooses by device and model.
        listener: is told how far the load is, in the thread that loads.
    """

    checkpoint: str
    expert_residency: str | None = "streaming"
    expert_cache_gb: float | None = None
    memory_gb: float | None = None
    prefill_scratch_gb: float | None = None
    kv_cache_gb: float | None = None
    wired_gb: float | None = None
    prefill_chunk: int | None = None
    listener: LoadListener = unheard

    @property
    def memory(self) -> MemoryFlags:
        """The budgets."""
        return MemoryFlags(
            expert_cache_gb=self.expert_cache_gb,
            memory_gb=self.memory_gb,
            prefill_scratch_gb=self.prefill_scratch_gb,
            kv_cache_gb=self.kv_cache_gb,
            wired_gb=self.wired_gb,
        )


def _never() -> bool:
    return False


def _nothing() -> None:
    pass


def _hot_pins(loaded: LoadedModel, observers: RouteObservers) -> HotPins | None:
    if "pin" not in loaded.settings.decode_residency:
        return None
    assert isinstance(loaded.store, BankCache), "loading refuses pins without a bank"
    return HotPins(loaded.store, observers)


class Engine:
    """A model, its tokenizer and its expert store, answering one request at a time.

    Attributes:
        loaded: what was loaded and how, for start-up lines and reports.
        store: what holds the experts; empty for mlx-lm's own model.
        end_tokens: token ids that end an answer.
        context_length: tokens that the model takes, prompt and answer together.
        kv_budget: how many of them there is memory for.
        route_observers: who sees which experts each token is routed to.
        forecast: what banks of other sizes would do.
        hot_pins: keeps hot experts in the bank; None unless asked for.
    """

    def __init__(self, loaded: LoadedModel, *, prefill_chunk: int | None = None) -> None:
        """Wrap a loaded model."""
        self.loaded = loaded
        self.model: nn.Module = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.store = loaded.store
        self.route_observers = RouteObservers(loaded.store)
        self.forecast = BankForecast(loaded.store, self.route_observers, dispatch=loaded.dispatch)
        self.hot_pins = _hot_pins(loaded, self.route_observers)
        self.kv_caches = loaded.cache
        self.end_tokens = frozenset(self.tokenizer.eos_token_ids)
        self.context_length = loaded.context_length
        self.kv_budget = KvBudget(
            context_length=loaded.context_length,
            tokens=loaded.plan.tokens,
            nbytes=loaded.plan.kv,
            size=loaded.kv_bytes,
        )
        self.vocabulary_size = loaded.vocabulary_size
        self._busy = False
        self._watch: MemoryWatch | None = None
        self.prefill_chunk = prefill_chunk or loaded.prefill_chunk

    def watch_memory(self, wake: Callable[[], None] = _nothing) -> Callable[[], MemoryState]:
        """Let the expert bank follow the memory that is left, from now to `close` (docs/memory.md).

        Args:
            wake: called from another thread when the bank should change: whoever has the engine's thread then
                calls `heed_memory`. A running answer does so by itself before each step.

        Returns:
            What tells, from any thread, what the watch has seen and done.
        """
        assert self._watch is None, "memory is watched once"
        if not isinstance(self.store, BankCache):
            return lambda: unwatched("there is no bank to shrink")
        if not self.loaded.settings.memory_pressure:
            return lambda: unwatched("LME_MEMORY_PRESSURE=0")
        watch = self._watch = MemoryWatch(self.store, wake)
        watch.start()
        return lambda: watch.state

    def heed_memory(self) -> None:
        """Shrink or grow the bank if the watch asks for it; between two steps, or while nothing runs."""
        if self._watch is not None and self._watch.asks:
            self._watch.heed()

    @property
    def memory_asks(self) -> bool:
        """Whether `heed_memory` has something to do; from any thread."""
        return self._watch is not None and self._watch.asks

    @classmethod
    def load(cls, config: EngineConfig) -> Engine:
        """Load what `config` names.

        Raises:
            MachError: every way in which a checkpoint, a budget or the machine can refuse.
        """
        if config.expert_residency == UNSWAPPED:
            loaded = load_unswapped(config.checkpoint, memory=config.memory, listener=config.listener)
        else:
            loaded = load_swapped(
                config.checkpoint,
                expert_residency=config.expert_residency,
                memory=config.memory,
                listener=config.listener,
            )
        return cls(loaded, prefill_chunk=config.prefill_chunk)

    def generate(
        self, request: GenerationRequest, cancelled: Callable[[], bool] = _never
    ) -> Iterator[StepEvent]:
        """Answer `request`, step by step; the last event has a finish reason and figures.

        Args:
            request: what to answer.
            cancelled: asked before every step and, in prompts and while experts are on disk, at every layer;
                with stock operations and all experts in memory before every step alone.

        Raises:
            GenerationCancelledError: `cancelled` said so; the engine is free again.
            PromptTooLongError, KvBudgetError, SamplingError: the request cannot be answered.
            EngineBusyError: another answer has not been finished or closed.
            StoreError: an expert could not be read; no token computed from it was given.
        """
        if self._busy:
            raise EngineBusyError("this engine is answering another request: finish or close that one first")
        generation = Generation(self, request)
        self._busy = True
        self.store.cancelled = cancelled
        observers, prefill = self.route_observers, True
        try:
            if self.hot_pins is not None:
                self.hot_pins.answer_begins()
            observers.answer_began(len(request.prompt))
            while not generation.finished:
                if cancelled():
                    raise GenerationCancelledError("the request was cancelled")
                self.heed_memory()
                prefill = generation.prefilling
                event = generation.step()
                observers.step_ended(prefill=prefill)
                self.forecast.step_ended(prefill=prefill)
                yield event
        except DispatchCancelledError as error:
            raise GenerationCancelledError(str(error)) from error
        finally:
            self._busy = False
            self.store.cancelled = _never
            self.store.abandon()
            observers.answer_ended(finished=generation.finished, prefill=prefill)
            self.forecast.answer_ended(finished=generation.finished)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text; special tokens written out in it are taken as such.

        Raises:
            TokenizerError: the text is not Unicode (it holds half of a surrogate pair).
        """
        return self._encode(text, add_special_tokens=True)

    def render_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **options: Any
    ) -> tuple[int, ...]:
        """Token ids of a conversation through the checkpoint's chat template, ready for the answer.

        Raises:
            TokenizerError: the checkpoint has no chat template, or the template refuses the messages.
        """
        if not self.tokenizer.has_chat_template:
            raise TokenizerError(f"{self.loaded.directory}: the checkpoint has no chat template")
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=False, **options
            )
        except Exception as error:  # templates raise whatever their author chose
            raise TokenizerError(f"the chat template refused the messages: {error}") from error
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text is not Unicode: character {error.start} is half of a surrogate pair; give UTF-8"
            ) from None
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def close(self) -> None:
        """Free files and memory.

        An engine of a thread other than the main one needs `mx.clear_streams()` after it, before the thread
        ends: MLX frees its streams when the system destroys the thread, and a process that exits just then
        is aborted.
        """
        if self._watch is not None:
            self._watch.close()
        self.store.close()
        mx.clear_cache()
