"""What comes before training: texts and images are encoded, the encoders go, and the denoiser comes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from training_schemas.progress import Phase
from training_worker.engines.diffusers.cache.keys import content_key
from training_worker.engines.diffusers.cache.model_digests import model_digest
from training_worker.engines.diffusers.cache.tensor_cache import TensorCache
from training_worker.engines.diffusers.data.captions import base_caption
from training_worker.engines.diffusers.data.dataset import Dataset
from training_worker.engines.diffusers.diffusion.batches import BatchSource, Item
from training_worker.engines.diffusers.diffusion.latents import CachedImages, ImageSource, LiveImages
from training_worker.engines.diffusers.diffusion.text_embeddings import CachedTexts, TextSource
from training_worker.engines.diffusers.models.loader import release_memory
from training_worker.engines.diffusers.pipelines.base import TrainingPipeline
from training_worker.engines.diffusers.protocol.progress_writer import ProgressWriter
from training_worker.engines.diffusers.training.process_group import SingleProcess
from training_worker.engines.diffusers.training.trainer import Trainer

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


class Preparation:
    """Makes a trainer, with no more in memory at a time than it takes."""

    def __init__(
        self,
        pipeline: TrainingPipeline[Any],
        dataset: Dataset,
        cache: TensorCache,
        progress: ProgressWriter,
        check_stop: Callable[[], None],
    ) -> None:
        self._pipeline = pipeline
        self._loader = pipeline.loader
        self._parameters = pipeline.parameters
        self._dataset = dataset
        self._cache = cache
        self._progress = progress
        self._check_stop = check_stop

    def encode(self, *, data_on_device: bool = False) -> None:
        """See to it that what was encoded is in the cache, or that what encodes is in memory.

        With ``data_on_device`` what training reads from the cache stays on the device from then on.
        """
        self._keep_on = self._loader.device if data_on_device else None
        self._texts = self._prepare_texts()
        self._images = self._prepare_images()

    def make_trainer(self, group: SingleProcess) -> Trainer:
        """Load what learns, after all has been encoded."""
        self._enter(Phase.LOADING_MODEL)
        self._pipeline.load_denoiser()
        items = [
            Item(caption=example.caption, shape=example.bucket, repeats=example.repeats)
            for example in self._dataset.examples
        ]
        batches = BatchSource(items, self._images, self._pipeline.noising, self._parameters)
        return Trainer(self._pipeline, batches, self._texts, group)

    def _prepare_texts(self) -> TextSource:
        captions = [base_caption(example.caption, self._parameters) for example in self._dataset.examples]
        texts = [*captions, *self._parameters.validation_prompts, ""]
        kept = self._pipeline.keeps_encoders
        self._enter(Phase.CACHING_TEXT, None if kept else len(texts))
        if kept:
            self._pipeline.load_encoders()
            return self._pipeline
        model = self._model_key(TEXT_ENCODERS, self._loader.dtype)
        source = CachedTexts(self._cache, model, self._pipeline.text_lengths, self._keep_on)
        if not source.has_all(texts):
            self._pipeline.load_encoders()
            source.embed_all(texts, self._pipeline.embed, self._check_stop)
            self._pipeline.drop_encoders()
            release_memory()
        return source

    def _prepare_images(self) -> ImageSource:
        settings, examples = self._parameters, self._dataset.examples
        self._enter(Phase.CACHING_LATENTS, len(examples) if settings.cache_vae_outputs else None)
        if not settings.cache_vae_outputs:
            vae = self._loader.vae()
            return LiveImages(vae, examples, crops=settings.random_crop, flips=settings.random_flip)
        model = self._model_key(["vae"], self._loader.vae_dtype)
        source = CachedImages(self._cache, examples, model, flips=settings.random_flip, keep_on=self._keep_on)
        if not source.complete:
            vae = self._loader.vae()
            source.encode_all(vae, self._check_stop)
            del vae
            release_memory()
        return source

    def _model_key(self, parts: Iterable[str], dtype: torch.dtype) -> str:
        """Name what makes the values that are cached."""
        folders = [self._loader.folder / part for part in parts]
        digests = [model_digest(folder, self._cache.folder, self._check_stop) for folder in folders]
        return content_key("model", parts=digests, dtype=str(dtype))

    def _enter(self, phase: Phase, total: int | None = None) -> None:
        """Begin a phase which starts with something that cannot be stopped half-way, such as loading a model."""
        self._progress.phase(phase, total)
        self._check_stop()
