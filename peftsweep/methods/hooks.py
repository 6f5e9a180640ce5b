"""The one thing a method may do beside its PEFT config: a table name -> hook, behind one interface.

The order in a job: `configure` -> `prepare` -> peft injects the adapter -> `calibrate` -> `build_optimizer` ->
for each step: forward, backward, optimizer, `after_step`, gradients to None -> `save`; `state` at each checkpoint.
A method's own loss term is no affair of the loop: it arrives in `outputs.loss` when the model is called with labels.
"""

from __future__ import annotations

import difflib
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, initialize_kv_prefix_from_text
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.lora.monteclora import MontecloraSampler
from torch import Tensor, nn

from peftsweep.config import HookConfig
from peftsweep.errors import MethodError, Problem

Batch = Mapping[str, Tensor]

# Where peft keeps moving averages that are neither parameters nor buffers.
ADALORA_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
ADAMSS_AVERAGES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")


@dataclass(frozen=True)
class Site:
    """What a hook may look at before the adapter exists.

    batches: calibration batches of the training split, each with input_ids, attention_mask and labels `(b, s)`;
    total_steps: optimizer steps of the whole run.
    """

    model: nn.Module
    total_steps: int
    tokenizer: Any = None
    batches: Sequence[Batch] = ()

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model. Raises MethodError where its configuration doesn't say."""
        config = getattr(self.model, "config", None)
        layers = getattr(config, "num_hidden_layers", None)
        if layers is None:
            raise MethodError(
                Problem("a share of layers needs a model whose config has num_hidden_layers", type(self.model).__name__)
            )
        return int(layers)


@dataclass(frozen=True)
class MethodHook:
    """The interface, and the hook of all methods that need none. Subclass fields are the YAML's `hook.kwargs`."""

    def calibration_batches(self) -> int:
        """How many batches of training data `Site.batches` must hold."""
        return 0

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        """Complete the PEFT arguments with what only the run knows: number of steps, of layers, token ids."""
        return arguments

    def prepare(self, config: PeftConfig, site: Site) -> None:
        """Called once before injection; may leave tensors on the base layers for peft to pick up."""

    def calibrate(self, model: PeftModel, site: Site) -> None:
        """Called once after injection, before the first step; may overwrite adapter weights."""

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer | None:
        """Return the method's own optimizer, or None: then the trainer builds `optimizer_class` as usual.

        May freeze parameters, so count the trainable ones afterwards.
        """
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step (1, 2, ...) while gradients are still there."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What the method keeps outside parameters and buffers, for a checkpoint.

        Tensors, numbers, text, and dicts and lists of them.
        """
        return {}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what `state` answered, into a freshly attached model."""

    def save(self, model: PeftModel, folder: Path) -> None:
        """Write the adapter so that `PeftModel.from_pretrained` on the untouched base gives the same outputs."""
        model.save_pretrained(str(folder), save_embedding_layers=False)


@dataclass(frozen=True)
class LayerShares(MethodHook):
    """Arguments counted in layers, given as shares, so that one YAML fits models of any depth."""

    shares: dict[str, float] = field(default_factory=dict)  # argument -> share of the model's layers, at least 1 layer

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        layers = {key: max(1, round(share * site.num_layers)) for key, share in self.shares.items()}
        return layers | arguments


@dataclass(frozen=True)
class RankAllocation(MethodHook):
    """Re-allocates capacity between layers while training (AdaLoRA, AdaMSS), on a schedule in shares of the run."""

    step_shares: dict[str, float] = field(default_factory=dict)  # argument -> share of all steps
    interval_shares: dict[str, float] = field(default_factory=dict)  # the same, but at least one step
    per_layer: dict[str, int] = field(default_factory=dict)  # argument -> value per decoder layer

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        steps = {key: round(share * site.total_steps) for key, share in self.step_shares.items()}
        intervals = {key: max(1, round(share * site.total_steps)) for key, share in self.interval_shares.items()}
        totals = {key: value * site.num_layers for key, value in self.per_layer.items()}
        return steps | intervals | totals | arguments

    def after_step(self, model: nn.Module, step: int) -> None:
        model.base_model.update_and_allocate(step)  # type: ignore[operator, union-attr]

    def state(self, model: nn.Module) -> dict[str, Any]:
        allocator = _rank_allocator(model)
        if allocator is not None:
            pattern = _active_config(model).rank_pattern or {}
            return {name: dict(getattr(allocator, name)) for name in ADALORA_AVERAGES} | {"rank_pattern": pattern}
        averages = {name: _subspace_averages(layer) for name, layer in _adamss_layers(model)}
        frozen = [name for name, weight in model.named_parameters() if "adamss_" in name and not weight.requires_grad]
        return {"averages": averages, "frozen": frozen}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        allocator = _rank_allocator(model)
        if allocator is not None:
            for name in ADALORA_AVERAGES:
                setattr(allocator, name, _to_device(state[name], model))
            _active_config(model).rank_pattern = state["rank_pattern"] or None
            return
        for name, layer in _adamss_layers(model):
            _put_subspace_averages(layer, _to_device(state["averages"][name], model))
        for name, weight in model.named_parameters():
            if name in state["frozen"]:
                weight.requires_grad_(False)


@dataclass(frozen=True)
class LoraFA(MethodHook):
    """Freezes A and trains B with the projected gradient (arXiv 2308.03303)."""

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        config = _active_config(model)
        return create_lorafa_optimizer(
            cast(PeftModel, model),
            r=config.r,
            lora_alpha=config.lora_alpha,
            lr=lr,
            weight_decay=kwargs.get("weight_decay", 0.0),
        )


@dataclass(frozen=True)
class LoraPlus(MethodHook):
    """Trains B faster than A (arXiv 2402.12354)."""

    lr_ratio: float = 16.0  # lr of B divided by lr of A

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        # peft sets the decay per group and would otherwise leave it at 0.
        decay = kwargs.pop("weight_decay", 0.0)
        return create_loraplus_optimizer(
            cast(PeftModel, model),
            optimizer_class,
            lr=lr,
            loraplus_lr_ratio=self.lr_ratio,
            loraplus_weight_decay=decay,
            **kwargs,
        )


@dataclass(frozen=True)
class LoraRiemannian(MethodHook):
    """Preconditions the gradients of A and B with an r x r matrix (arXiv 2402.02347)."""

    reg: float = 1e-2  # damping added to the diagonal before inversion

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        return create_riemannian_optimizer(cast(PeftModel, model), optimizer_class, lr=lr, reg=self.reg, **kwargs)


@dataclass(frozen=True)
class Eva(MethodHook):
    """Initialises A from the activations' principal directions and re-distributes ranks (arXiv 2410.07170)."""

    batches: int = 8  # calibration batches; peft goes round them until all directions have converged

    def calibration_batches(self) -> int:
        return self.batches

    def calibrate(self, model: PeftModel, site: Site) -> None:
        from peft.tuners.lora.eva import initialize_lora_eva_weights

        _require_batches(site, "EVA")
        batches = [dict(batch) for batch in site.batches]
        _require_tokens_for_eva(_active_config(model), batches)
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)


@dataclass(frozen=True)
class MutatesBase(MethodHook):
    """Base of hooks whose initialisation rewrites base weights from data that a later load won't have.

    Saving subtracts the initial adapter from the trained one, which gives a plain LoRA of twice the rank for the
    untouched base model (peft's `path_initial_model_for_weight_conversion`).
    """

    batches: int = 8  # calibration batches
    _initial: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="peftsweep-initial-"), repr=False, compare=False
    )

    def calibration_batches(self) -> int:
        return self.batches

    def calibrate(self, model: PeftModel, site: Site) -> None:
        config = _active_config(model)
        rewritten, config.init_lora_weights = (
            config.init_lora_weights,
            True,
        )  # else the load would rewrite the base again
        model.save_pretrained(self._initial.name, save_embedding_layers=False)
        config.init_lora_weights = rewritten

    def save(self, model: PeftModel, folder: Path) -> None:
        model.save_pretrained(
            str(folder), save_embedding_layers=False, path_initial_model_for_weight_conversion=self._initial.name
        )


@dataclass(frozen=True)
class Corda(MutatesBase):
    """Initialises A and B from weights seen through the covariance of the activations (arXiv 2406.05223)."""

    def prepare(self, config: PeftConfig, site: Site) -> None:
        from peft.tuners.lora.corda import preprocess_corda

        _require_batches(site, "CorDA")
        preprocess_corda(site.model, cast(LoraConfig, config), run_model=lambda: _run_rows(site))


@dataclass(frozen=True)
class LoraGA(MutatesBase):
    """Initialises A and B from the gradient of the full weights (arXiv 2407.05000)."""

    def prepare(self, config: PeftConfig, site: Site) -> None:
        from peft.tuners.lora.loraga import preprocess_loraga

        _require_batches(site, "LoRA-GA")
        preprocess_loraga(site.model, cast(LoraConfig, config), train_step=lambda: _accumulate_gradients(site))


@dataclass(frozen=True)
class AddsLoss(MethodHook):
    """Adds a regulariser that peft computes but leaves to the caller; AdaLoRA and SHADOW add theirs by themselves."""

    term: str = ""  # name of the LoraModel method that returns it; 0.0 where nothing applies

    def calibrate(self, model: PeftModel, site: Site) -> None:
        tuner = model.base_model

        def add_term(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            if getattr(outputs, "loss", None) is not None:
                outputs.loss = outputs.loss + getattr(tuner, self.term)()
            return outputs

        tuner.register_forward_hook(add_term)


@dataclass(frozen=True)
class MonteClora(AddsLoss):
    """Also remembers how much of the samplers' stock of noise is used up."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        return {name: stock.index for name, stock in _noise_stocks(model)}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        for name, stock in _noise_stocks(model):
            stock.index = state[name]


@dataclass(frozen=True)
class VeLora(MethodHook):
    """Remembers which layers have fixed their projection: it is taken from the first batch that they see."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        return {name: dict(flags) for name, flags in _velora_flags(model)}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        for name, flags in _velora_flags(model):
            flags.update(state[name])


@dataclass(frozen=True)
class LoftQ(MethodHook):
    """Refuses early what peft would refuse in the middle of changing the model."""

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        if not (torch.cuda.is_available() or torch.xpu.is_available()):
            raise MethodError(
                Problem(
                    "LoftQ quantises the base weights with bitsandbytes on a GPU",
                    "no GPU",
                    "method=loftq",
                    "Run it on a machine with CUDA, or choose another method.",
                )
            )
        return arguments


@dataclass(frozen=True)
class TextPrefix(MethodHook):
    """Starts the key-value prefix from real text instead of noise: the given one, or the first training rows."""

    text: str = ""  # "": decode calibration rows
    batches: int = 8

    def calibration_batches(self) -> int:
        return 0 if self.text else self.batches

    def calibrate(self, model: PeftModel, site: Site) -> None:
        text = self.text or _text_of(site)
        length = _active_config(model).num_virtual_tokens
        initialize_kv_prefix_from_text(model, site.tokenizer, text=text, use_chat_template=False, max_length=length)


@dataclass(frozen=True)
class FrequentTokens(MethodHook):
    """Trains the embeddings of the tokens that the training data uses most."""

    tokens: int = 0  # how many; the YAML wires it to method.capacity
    batches: int = 32

    def calibration_batches(self) -> int:
        return self.batches

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        _require_batches(site, "trainable tokens")
        ids = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in site.batches])
        values, counts = ids.unique(return_counts=True)
        most = counts.argsort(descending=True, stable=True)[: self.tokens]
        return {"token_indices": sorted(values[most].tolist())} | arguments


@dataclass(frozen=True)
class ContextTokens(MethodHook):
    """Starts CPT's prompt from tokens of training rows, the in-context examples of arXiv 2410.17222."""

    tokens: int = 0  # how many; the YAML wires it to method.capacity
    batches: int = 8

    def calibration_batches(self) -> int:
        return self.batches

    def configure(self, arguments: dict[str, Any], site: Site) -> dict[str, Any]:
        _require_batches(site, "CPT")
        kept = [batch["attention_mask"].bool() for batch in site.batches]
        ids = torch.cat([batch["input_ids"][mask] for batch, mask in zip(site.batches, kept, strict=True)])
        labels = torch.cat([batch["labels"][mask] for batch, mask in zip(site.batches, kept, strict=True)])
        is_answer = labels[: self.tokens] != -100
        if is_answer.all():  # the loss covers questions too, so labels don't tell them apart: let every token move
            is_answer = torch.zeros_like(is_answer)
        # peft's codes: 2 = input, which training may move; 4 = label, which stays as it is.
        types = torch.where(is_answer, 4, 2).tolist()
        found = {"cpt_token_ids": ids[: self.tokens].tolist(), "cpt_tokens_type_mask": types}
        return found | arguments


HOOKS: dict[str, type[MethodHook]] = {
    "none": MethodHook,
    "layer_shares": LayerShares,
    "rank_allocation": RankAllocation,
    "lora_fa": LoraFA,
    "lora_plus": LoraPlus,
    "lora_riemannian": LoraRiemannian,
    "eva": Eva,
    "corda": Corda,
    "lora_ga": LoraGA,
    "adds_loss": AddsLoss,
    "monteclora": MonteClora,
    "velora": VeLora,
    "loftq": LoftQ,
    "text_prefix": TextPrefix,
    "frequent_tokens": FrequentTokens,
    "context_tokens": ContextTokens,
}


def build_hook(config: HookConfig | None) -> MethodHook:
    """Look the hook up and build it from its kwargs. Raises MethodError on an unknown name or argument."""
    if config is None:
        return MethodHook()
    if config.name not in HOOKS:
        close = difflib.get_close_matches(config.name, HOOKS, n=1)
        fix = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(HOOKS)}."
        raise MethodError(Problem("method.hook.name must be a row of the hook table", config.name, fix=fix))
    hook_class = HOOKS[config.name]
    known = [name for name in inspect.signature(hook_class).parameters if not name.startswith("_")]
    unknown = sorted(set(config.kwargs) - set(known))
    if unknown:
        raise MethodError(
            Problem(f"hook {config.name} takes {known or 'no arguments'}", unknown[0], "method.hook.kwargs")
        )
    return hook_class(**config.kwargs)


def _active_config(model: nn.Module) -> Any:
    return model.active_peft_config


def _rank_allocator(model: nn.Module) -> Any:
    return getattr(model.base_model, "rankallocator", None)


def _adamss_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, ADAMSS_AVERAGES[0])]


def _subspace_averages(layer: Any) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Attribute -> adapter -> subspace -> moving average; subspaces without one yet are left out."""
    found = {}
    for name in ADAMSS_AVERAGES:
        per_adapter = getattr(layer, name).items()
        found[name] = {key: {i: x for i, x in enumerate(row) if x is not None} for key, row in per_adapter}
    return found


def _put_subspace_averages(layer: Any, averages: dict[str, dict[str, dict[int, Tensor]]]) -> None:
    for name, per_adapter in averages.items():
        for adapter, row in per_adapter.items():
            length = len(getattr(layer, name)[adapter])
            getattr(layer, name)[adapter] = [row.get(i) for i in range(length)]


def _noise_stocks(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module.sampler) for name, module in model.named_modules() if isinstance(module, MontecloraSampler)]


def _velora_flags(model: nn.Module) -> list[tuple[str, dict[str, bool]]]:
    name_of_flags = "lora_velora_initialized"
    return [
        (name, vars(module)[name_of_flags]) for name, module in model.named_modules() if name_of_flags in vars(module)
    ]


def _to_device(value: Any, model: nn.Module) -> Any:
    """Move the tensors of nested dicts to the model's device."""
    if isinstance(value, dict):
        return {key: _to_device(item, model) for key, item in value.items()}
    return value.to(next(model.parameters()).device) if isinstance(value, Tensor) else value


def _require_batches(site: Site, who: str) -> None:
    if not site.batches:
        raise MethodError(
            Problem(
                f"{who} looks at training data before the first step", "no calibration batches", "calibration_batches"
            )
        )


def _require_tokens_for_eva(config: Any, batches: Sequence[Batch]) -> None:
    """peft skips batches with fewer answer tokens than components, and goes round for ever if all are too small."""
    components = round(config.r * config.eva_config.rho)
    most_tokens = max(int((batch["attention_mask"].bool() & (batch["labels"] != -100)).sum()) for batch in batches)
    if most_tokens < components:
        raise MethodError(
            Problem(
                f"EVA needs a batch with at least rank x rho = {components} tokens in the loss",
                most_tokens,
                "calibration batches",
                "Use a larger hparams.batch_size or a smaller method.capacity.",
            )
        )


@torch.no_grad()
def _run_rows(site: Site) -> None:
    """One unpadded row at a time: CorDA's covariance drops the batch dimension and can't tell padding from text."""
    device = next(site.model.parameters()).device
    for batch in site.batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            site.model(input_ids=ids[mask.bool()].unsqueeze(0).to(device))


def _accumulate_gradients(site: Site) -> None:
    device = next(site.model.parameters()).device
    for batch in site.batches:
        site.model(**{key: value.to(device) for key, value in batch.items()}).loss.backward()


def _text_of(site: Site) -> str:
    _require_batches(site, "a prefix from text")
    rows = [
        ids[mask.bool()]
        for batch in site.batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return str(site.tokenizer.decode(torch.cat(rows), skip_special_tokens=True))
