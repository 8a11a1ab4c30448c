"""A tiny SDXL pipeline with random weights, built in memory."""

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH_L, WIDTH_G = 32, 48


def build_pipeline() -> StableDiffusionXLPipeline:
    """Build the pipeline, always the same: SDXL's blocks in small, and text encoders of two widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(WIDTH_L)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(WIDTH_G)),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=_unet(),
            scheduler=EulerDiscreteScheduler(),
        )


@torch.no_grad()
def predict_noise(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    """Predict the noise of something, always the same, by a prompt that both text encoders read."""
    generator = torch.Generator().manual_seed(0)
    tokens, _, pooled, _ = pipeline.encode_prompt("a robot", device="cpu", do_classifier_free_guidance=False)
    prediction: torch.Tensor = pipeline.unet(
        torch.randn(1, 4, 16, 16, generator=generator),
        500,
        encoder_hidden_states=tokens,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])},
        return_dict=False,
    )[0]
    return prediction


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[16, 32, 32],
        layers_per_block=2,
        transformer_layers_per_block=[1, 2, 2],
        attention_head_dim=[2, 4, 4],
        cross_attention_dim=WIDTH_L + WIDTH_G,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH_G + 6 * 8,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _tokenizer() -> CLIPTokenizer:
    """One token for each byte, within a word and at its end, and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
