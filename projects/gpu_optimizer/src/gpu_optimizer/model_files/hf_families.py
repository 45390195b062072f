"""Which fields of a Hugging Face config.json are read, per family, and how many parameters follow.

Only sizes, switches and dropout rates that change memory are in these tables. Defaults are those
of transformers 5 (models/*/configuration_*.py) written down here, so that a model does not change
with the library.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=16_777_216)]
Layers = Annotated[int, Field(ge=1, le=2_000)]
Heads = Annotated[int, Field(ge=1, le=4_096)]
Width = Annotated[int, Field(ge=1, le=262_144)]
Inner = Annotated[int, Field(ge=1, le=4_194_304)]
Vocabulary = Annotated[int, Field(ge=1, le=16_777_216)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Activation = Literal[
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
]


class Family(BaseModel, ABC):
    """Fields of one family; all others are left out before a model is built."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    architectures: ClassVar[tuple[str, ...]]
    """Class names that are built; the first stands for all others."""
    config_class: ClassVar[str]

    @abstractmethod
    def n_parameters(self, architecture: str) -> int:
        """Parameters in closed form, tied ones counted once."""


class _Decoder(Family):
    """What Llama, Mistral and Qwen have in common: RMS norms, gated MLP, grouped attention."""

    vocab_size: Vocabulary
    hidden_size: Width = 4096
    intermediate_size: Inner
    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Field(ge=2, le=8_192, multiple_of=2)] | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Count
    tie_word_embeddings: bool = False
    attention_dropout: Rate = 0.0
    use_cache: bool = True

    @model_validator(mode="after")
    def _divisible(self) -> "_Decoder":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.head_dim is None and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError("hidden_size / num_attention_heads must be even")
        if self.num_attention_heads % self._kv_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self

    @property
    def _kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def _head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def _extra_per_layer(self) -> int:
        """Biases and additional norms."""
        return 0

    def _projected(self) -> tuple[int, int]:
        """Width of all query heads, of all key heads."""
        return self.num_attention_heads * self._head_dim, self._kv_heads * self._head_dim

    def n_parameters(self, architecture: str) -> int:
        """Parameters in closed form, tied ones counted once."""
        width = self.hidden_size
        queries, keys = self._projected()
        per_layer = width * (2 * queries + 2 * keys + 3 * self.intermediate_size + 2)
        embedding = self.vocab_size * width
        has_head = architecture.endswith("ForCausalLM") and not self.tie_word_embeddings
        return (
            embedding * (2 if has_head else 1)
            + self.num_hidden_layers * (per_layer + self._extra_per_layer())
            + width
        )


class Llama(_Decoder):
    """transformers LlamaConfig."""

    architectures = ("LlamaForCausalLM", "LlamaModel")
    config_class = "LlamaConfig"

    vocab_size: Vocabulary = 32_000
    intermediate_size: Inner = 11_008
    max_position_embeddings: Count = 2_048
    attention_bias: bool = False
    mlp_bias: bool = False

    def _extra_per_layer(self) -> int:
        queries, keys = self._projected()
        attention = queries + 2 * keys + self.hidden_size
        mlp = 2 * self.intermediate_size + self.hidden_size
        return attention * self.attention_bias + mlp * self.mlp_bias


class Mistral(_Decoder):
    """transformers MistralConfig."""

    architectures = ("MistralForCausalLM", "MistralModel")
    config_class = "MistralConfig"

    vocab_size: Vocabulary = 32_000
    intermediate_size: Inner = 14_336
    num_key_value_heads: Heads = 8
    max_position_embeddings: Count = 131_072
    sliding_window: Count | None = 4_096


class Qwen2(_Decoder):
    """transformers Qwen2Config."""

    architectures = ("Qwen2ForCausalLM", "Qwen2Model")
    config_class = "Qwen2Config"

    vocab_size: Vocabulary = 151_936
    intermediate_size: Inner = 22_016
    num_key_value_heads: Heads | None = 32
    max_position_embeddings: Count = 32_768
    use_sliding_window: bool = False
    sliding_window: Count | None = 4_096
    max_window_layers: Annotated[int, Field(ge=0, le=2_000)] = 28

    def _extra_per_layer(self) -> int:
        queries, keys = self._projected()
        return queries + 2 * keys


class Qwen3(Qwen2):
    """transformers Qwen3Config."""

    architectures = ("Qwen3ForCausalLM", "Qwen3Model")
    config_class = "Qwen3Config"

    head_dim: Annotated[int, Field(ge=2, le=8_192, multiple_of=2)] = 128
    attention_bias: bool = False

    def _extra_per_layer(self) -> int:
        queries, keys = self._projected()
        biases = queries + 2 * keys + self.hidden_size
        return 2 * self._head_dim + biases * self.attention_bias


class Gpt2(Family):
    """transformers GPT2Config, with the aliases of its attribute_map."""

    architectures = ("GPT2LMHeadModel", "GPT2Model")
    config_class = "GPT2Config"

    vocab_size: Vocabulary = 50_257
    n_positions: Count = Field(
        1_024, validation_alias=AliasChoices("n_positions", "max_position_embeddings")
    )
    n_embd: Width = Field(768, validation_alias=AliasChoices("n_embd", "hidden_size"))
    n_layer: Layers = Field(12, validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    n_head: Heads = Field(12, validation_alias=AliasChoices("n_head", "num_attention_heads"))
    n_inner: Inner | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: Rate = 0.1
    embd_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    use_cache: bool = True

    @model_validator(mode="after")
    def _divisible(self) -> "Gpt2":
        if self.n_embd % self.n_head:
            raise ValueError("n_embd must be a multiple of n_head")
        return self

    def n_parameters(self, architecture: str) -> int:
        """Parameters in closed form, tied ones counted once."""
        width, inner = self.n_embd, self.n_inner or 4 * self.n_embd
        per_layer = 4 * width * width + 9 * width + 2 * width * inner + inner
        has_head = architecture == "GPT2LMHeadModel" and not self.tie_word_embeddings
        return (
            self.vocab_size * width * (2 if has_head else 1)
            + self.n_positions * width
            + self.n_layer * per_layer
            + 2 * width
        )


class _Encoder(Family):
    """What BERT and ViT have in common."""

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    intermediate_size: Inner = 3_072
    hidden_act: Activation = "gelu"
    num_labels: Annotated[int, Field(ge=1, le=1_000_000)] = 2

    @model_validator(mode="after")
    def _divisible(self) -> "_Encoder":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        return self

    def _n_layer_parameters(self) -> int:
        """Attention, MLP and two layer norms, all with biases."""
        width, inner = self.hidden_size, self.intermediate_size
        return 4 * width * width + 9 * width + 2 * width * inner + inner


class Bert(_Encoder):
    """transformers BertConfig."""

    architectures = ("BertForMaskedLM", "BertForSequenceClassification", "BertModel")
    config_class = "BertConfig"

    vocab_size: Vocabulary = 30_522
    max_position_embeddings: Count = 512
    type_vocab_size: Annotated[int, Field(ge=1, le=65_536)] = 2
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    tie_word_embeddings: bool = True

    def n_parameters(self, architecture: str) -> int:
        """Parameters in closed form, tied ones counted once."""
        width = self.hidden_size
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        body = (rows + 2) * width + self.num_hidden_layers * self._n_layer_parameters()
        pooler = width * (width + 1)
        if architecture == "BertModel":
            return body + pooler
        if architecture == "BertForSequenceClassification":
            return body + pooler + (width + 1) * self.num_labels
        output = 0 if self.tie_word_embeddings else self.vocab_size * (width + 1)
        return body + pooler + 2 * width + self.vocab_size + output


class Vit(_Encoder):
    """transformers ViTConfig."""

    architectures = ("ViTForImageClassification", "ViTModel")
    config_class = "ViTConfig"

    image_size: Pixels = 224
    patch_size: Annotated[int, Field(ge=1, le=4_096)] = 16
    num_channels: Annotated[int, Field(ge=1, le=1_024)] = 3
    qkv_bias: bool = True
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0

    @model_validator(mode="after")
    def _has_patches(self) -> "Vit":
        if self.patch_size > self.image_size:
            raise ValueError("patch_size must not exceed image_size")
        return self

    def n_parameters(self, architecture: str) -> int:
        """Parameters in closed form."""
        width = self.hidden_size
        n_patches = (self.image_size // self.patch_size) ** 2
        patches = self.num_channels * self.patch_size**2 * width + width
        layer = self._n_layer_parameters() - (0 if self.qkv_bias else 3 * width)
        body = (n_patches + 2) * width + patches + self.num_hidden_layers * layer + 2 * width
        if architecture == "ViTModel":
            return body + width * (width + 1)
        return body + (width + 1) * self.num_labels


FAMILIES: dict[str, type[Family]] = {
    "bert": Bert,
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "vit": Vit,
}
"""By the ``model_type`` of their config.json."""
