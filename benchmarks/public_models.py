"""List the public models whose tracing is measured, and build them with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

Example = tuple | dict


@dataclass(frozen=True)
class Model:
    """A public model. `build` makes it with random weights, and `example(batch, generator)` draws an input for it."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[nn.Module, int, torch.Generator], Example]


TIMM = """
    beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coat_lite_tiny coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224
    convit_tiny convmixer_768_32 convnext_atto convnext_tiny convnextv2_atto crossvit_tiny_240 cs3darknet_s cspresnet50 davit_tiny
    deit3_small_patch16_224 deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla34 dla46_c dpn48b dpn68
    eca_resnet33ts edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100 flexivit_small focalnet_tiny_srf gcvit_xxtiny
    gernet_s ghostnet_100 gmixer_24_224 gmlp_ti16_224 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224
    hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 levit_128s mambaout_femto
    maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 mixer_s32_224 mixnet_s mnasnet_small mobilenetv1_100 mobilenetv3_small_050
    mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small
    nf_resnet26 nf_regnet_b0 nfnet_l0 pit_ti_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 regnetx_002 regnety_002 repghostnet_050
    repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d resnet10t resnet18 resnet26d resnetv2_18 resnetv2_50
    resnext26ts rexnet_100 rexnetr_200 sebotnet33ts_256 selecsls42 semnasnet_050 sequencer2d_s seresnet18 shvit_s1 skresnet18
    spnasnet_100 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tf_efficientnet_b0
    tf_mixnet_s tinynet_e tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small vgg11 vgg11_bn visformer_tiny
    vit_tiny_patch16_224 vit_small_patch16_224 vit_relpos_small_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
    vovnet39a wide_resnet50_2 xception41 xcit_nano_12_p16_224 caformer_s18 convformer_s18 rdnet_tiny csatv2
""".split()  # noqa: SIM905  # one name after the other is easier to read

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mc3_18 mnasnet0_5 mobilenet_v2
    mobilenet_v3_small mvit_v1_b mvit_v2_s r2plus1d_18 r3d_18 regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d s3d
    shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t swin3d_t vgg11 vgg16_bn vit_b_32 wide_resnet50_2
    deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large raft_small
""".split()  # noqa: SIM905  # one name after the other is easier to read

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 120}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
PAIR = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 120}  # fmt: skip
WAVES = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 16,
         "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3}  # fmt: skip

SHORT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 120}
FEW = {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 120}
EMBEDDED, PADDED = SMALL | {"embedding_size": 64}, SMALL | {"pad_token_id": 0}
TEXT = {  # type: the options that make it small
    **{"bert": {}, "gpt2": {}},  # of their usual size
    **{"roberta": SMALL, "deberta": SMALL, "deberta-v2": SMALL, "mpnet": SMALL, "xlm-roberta": SMALL, "camembert": SMALL, "ernie": SMALL},
    **{"layoutlm": SMALL, "fnet": SMALL, "nystromformer": SMALL, "rembert": SMALL, "roformer": SMALL, "longformer": SMALL},
    "big_bird": SMALL | {"attention_type": "original_full"},
    **{"gpt_neox": SMALL, "falcon": SMALL, "modernbert": PADDED, "phi": PADDED, "esm": PADDED},
    **{"albert": EMBEDDED, "electra": EMBEDDED, "squeezebert": EMBEDDED, "convbert": EMBEDDED},
    **{
        "xlnet": FEW,
        "funnel": FEW | {"d_head": 16, "block_sizes": [1, 1], "architectures": ["FunnelModel"]},
        "gptj": SHORT,
        "codegen": SHORT,
    },
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 120},
    "mobilebert": {"num_hidden_layers": 2, "vocab_size": 120},
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "vocab_size": 120},
    "opt": SMALL | {"ffn_dim": 128, "word_embed_proj_dim": 64, "pad_token_id": 1},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 120},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 120},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 120, "state_size": 4, "use_cache": False},
    **{"llama": GROUPED, "mistral": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED, "gemma": GROUPED, "gemma2": GROUPED, "olmo2": GROUPED},
    **{"cohere": GROUPED, "starcoder2": GROUPED, "phi3": GROUPED, "stablelm": GROUPED, "mixtral": GROUPED | {"num_local_experts": 2}},
}
TO_TEXT = {
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 120}, "bart": PAIR, "mbart": PAIR,
    "pegasus": PAIR, "marian": PAIR | {"pad_token_id": 0, "decoder_start_token_id": 0}, "blenderbot": PAIR, "m2m_100": PAIR,
}  # fmt: skip
IMAGE = {
    "vit": SMALL | {"image_size": 32, "patch_size": 8}, "deit": SMALL | {"image_size": 32, "patch_size": 8},
    "beit": SMALL | {"image_size": 32, "patch_size": 8, "use_relative_position_bias": True},
    "dinov2": SMALL | {"image_size": 32, "patch_size": 8}, "vit_mae": SMALL | {"image_size": 32, "patch_size": 8, "mask_ratio": 0.0},
    "swin": {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "swinv2": {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "convnext": {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}, "segformer": {"hidden_sizes": [16, 32, 32, 64]},
    "poolformer": {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}, "resnet": {"hidden_sizes": [16, 32], "depths": [1, 1]},
    "regnet": {"hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, "mobilenet_v2": {"depth_multiplier": 0.35},
    "clip_vision_model": SMALL | {"image_size": 32, "patch_size": 8}, "siglip_vision_model": SMALL | {"image_size": 32, "patch_size": 8},
}  # fmt: skip
SOUND = {"wav2vec2": SMALL | WAVES, "hubert": SMALL | WAVES, "wavlm": SMALL | WAVES, "data2vec-audio": SMALL | WAVES}


def _from_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _image_of_timm(network: nn.Module, batch: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(batch, *network.default_cfg["input_size"], generator=generator),)


def _from_torchvision(name: str) -> nn.Module:
    import torchvision

    options = {"weights_backbone": None} if name.startswith(("deeplab", "fcn", "lraspp")) else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


SIDES = {"inception_v3": 299, "swin_v2_t": 256, "deeplabv3_resnet50": 128, "fcn_resnet50": 128}
VIDEOS = {"mc3_18": (8, 64), "r2plus1d_18": (8, 64), "r3d_18": (8, 64), "s3d": (16, 224), "swin3d_t": (8, 64),
          "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}  # fmt: skip


def _image_of_torchvision(name: str, network: nn.Module, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    frames, side = VIDEOS.get(name, (0, SIDES.get(name, 224)))
    shape = (batch, 3, *([frames] if frames else []), side, side)
    if name.startswith("raft"):
        return tuple(torch.randn(batch, 3, 128, 128, generator=generator) for _ in range(2))
    return (torch.randn(shape, generator=generator),)


def _from_transformers(name: str, options: dict) -> nn.Module:
    import transformers

    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name, **options))


def _tokens(network: nn.Module, batch: int, generator: torch.Generator, to: bool = False) -> dict[str, Tensor]:
    words = torch.randint(3, 100, (batch, 12), generator=generator)
    given = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return given | ({"decoder_input_ids": words[:, :7]} if to else {})


def _pixels(network: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    side = getattr(network.config, "image_size", 64)
    side = side if isinstance(side, int) else 64
    return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator)}


def _wave(network: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, 1600, generator=generator)}


def models() -> list[Model]:
    """All models, in a fixed order."""
    found = [Model(f"timm/{n}", "timm", partial(_from_timm, n), _image_of_timm) for n in TIMM]
    found += [
        Model(f"torchvision/{n}", "torchvision", partial(_from_torchvision, n), partial(_image_of_torchvision, n)) for n in TORCHVISION
    ]
    forms = (
        (TEXT, "text", _tokens),
        (TO_TEXT, "text to text", partial(_tokens, to=True)),
        (IMAGE, "images", _pixels),
        (SOUND, "sound", _wave),
    )
    for table, form, example in forms:
        found += [Model(f"transformers/{n}", f"transformers, {form}", partial(_from_transformers, n, o), example) for n, o in table.items()]
    return found
