"""Publishing from a Trainer: asked before training whether it can work, nothing lost when it fails, a true card."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_amp.files import write_whole
from hf_amp.hub.access import PublishingError, check_write_access, later_command, make_branch, make_repository, short
from hf_amp.hub.card import CARD_NAME, is_generated, is_untouched, read_card, render_card
from hf_amp.hub.facts import CURVES_NAME, repo_id_of
from hf_amp.hub.log_history import curves
from hf_amp.hub.section import CardArguments, CardSectionMixin
from hf_amp.hub.upload.background import BackgroundPushes, copy_model

logger = logging.get_logger(__name__)

_REMEDY = "or train with hub_check=False (AMPTrainingArguments), or HF_HUB_OFFLINE=1 and `python -m hf_amp.push` later"


class PublishingMixin(CardSectionMixin):
    """Makes `push_to_hub` of any Trainer fail early, lose nothing and write a card of what was recorded.

        class Publishing(PublishingMixin, Seq2SeqTrainer): ...  # or (AMPTrainerMixin, PublishingMixin, …)

    With `push_to_hub` it checks token, name space, repository and branch before training, unless `hub_check=False`.
    With `HF_HUB_OFFLINE=1` nothing is asked and nothing is pushed. A push that fails leaves everything in `output_dir`,
    and its error gives the command for later. `hub_token` is never written into `training_args.bin`.

    Attributes:
        evaluated_split: what cards and figures call the data that is evaluated while training.

    Raises:
        PublishingError: at construction, with `push_to_hub`, if a push cannot work.
        TypeError: if the mixin stands behind the Trainer in a class's bases.
    """

    evaluated_split = "evaluation"
    _is_saved = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Trainer in cls.__mro__ and cls.__mro__.index(Trainer) < cls.__mro__.index(PublishingMixin):
            raise TypeError(
                f"{cls.__name__} must name PublishingMixin before its Trainer, or nothing is checked; write "
                f"class {cls.__name__}(PublishingMixin, …Trainer)"
            )

    @cached_property
    def _background(self) -> BackgroundPushes:
        return BackgroundPushes(self._report)

    # --- before training ---

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository on the Hub, after a check that it can be written to.

        Args:
            token: one that may write; None: `hub_token`, or the one that the user is logged in with.
            private: make a private repository; None: what `hub_private_repo` says.

        Raises:
            PublishingError: no token, one that may not write, or no such repository; not with `hub_check=False`.
        """
        if not self.is_world_process_zero():
            return
        args, repo_id = self.args, repo_id_of(self)
        if is_offline_mode():
            self.hub_model_id = repo_id
            logger.warning(f"Offline mode: nothing is pushed to {repo_id} now. Push later: `{self._later_command()}`.")
            return
        if not getattr(args, "hub_check", True):
            super().init_hf_repo(token, **({} if private is None else {"private": private}))  # new in transformers
            return
        token = token or args.hub_token
        check_write_access(repo_id, token, _REMEDY)
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = make_repository(repo_id, token, private, _REMEDY)
        make_branch(self.hub_model_id, token, args.hub_revision, _REMEDY)

    # --- while training ---

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, and wait for the pushes in the background."""
        result = super().train(*args, **kwargs)
        self._background.wait()
        return result

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background as `Trainer` does, with a card and the modelling code."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END or is_offline_mode():
            return
        if args.hub_always_push:
            self._background.wait()  # they read the files that are replaced now, and would send a mixture
        elif self._background.is_running():
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        copy_model(Path(checkpoint_folder), Path(str(args.output_dir)))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(args.output_dir))
        try:
            self.create_model_card()
        except Exception as error:  # a card is no reason to lose a training
            logger.warning(f"No card for the push at step {self.state.global_step}: {short(error)}", exc_info=True)
        self._background.push(Path(checkpoint_folder), repo_id_of(self), args, self.state)

    def _report(self, job: Future) -> None:
        if not job.cancelled() and (error := job.exception()) is not None:
            logger.warning(
                f"A push in the background to {self.hub_model_id} failed: {short(error)}. Nothing is lost: the next "
                f"push, or `{self._later_command()}`, brings what is in {self.args.output_dir}."
            )

    # --- saving ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, without the token in `training_args.bin`; a card of ours stays as it is.

        As of any Trainer, a call by the user pushes with `push_to_hub=True`; offline it writes the card instead.
        """
        with self._card_kept(Path(output_dir or str(self.args.output_dir)) / CARD_NAME), self._token_set_aside():
            super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            if is_offline_mode():  # said at the start
                self.create_model_card()
            else:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def _token_set_aside(self) -> Iterator[None]:
        """Keep the token out of what is pickled meanwhile: `training_args.bin` is pushed, for all to read."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            yield
        finally:
            self.args.hub_token = token

    @contextmanager
    def _card_kept(self, path: Path) -> Iterator[None]:
        """Put a card of ours back after a save: PEFT's writes into it, and it would look changed by hand."""
        card = path.read_bytes() if path.is_file() else b""
        yield
        if self.args.should_save and is_untouched(card.decode(errors="replace")) and path.read_bytes() != card:
            write_whole(path, card)

    # --- the push that the user asks for ---

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save model and card in `output_dir` and upload the folder, as `Trainer` does.

        Args:
            commit_message: of the commit.
            blocking: wait until everything is uploaded.
            token: one that may write; None: `hub_token`, or the one that the user is logged in with.
            revision: branch to push to; None: what `hub_revision` says.
            private: make a private repository, where there is none yet; None: what `hub_private_repo` says.
            kwargs: those of `create_model_card`, e.g. `license`, `dataset`, `dataset_tags`, `tags`.

        Returns:
            The commit, or a future of it with `blocking=False`; None on other processes than the main one.

        Raises:
            PublishingError: the push failed; everything is in `output_dir`, and the text gives the command that pushes
                it later.
        """
        self._background.wait()  # they read the files that are written now
        self._is_saved = False
        try:
            if is_offline_mode():
                raise PublishingError("offline mode is on (HF_HUB_OFFLINE)")
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            given = {name: value for name, value in (("token", token), ("revision", revision)) if value is not None}
            pushed = super().push_to_hub(commit_message=commit_message, blocking=blocking, **given, **kwargs)
        except Exception as error:
            if self.hub_model_id is None or is_offline_mode():  # it has not come to saving, on no process
                self.save_model(_internal_call=True)
                self.create_model_card(**kwargs)
            elif not self._is_saved:  # nor to the push: another error
                raise
            raise self._failed_push(error, revision) from error
        if isinstance(pushed, Future):
            pushed.add_done_callback(self._report)
        return pushed

    def _failed_push(self, error: Exception, revision: str | None) -> PublishingError:
        return PublishingError(
            f"The push to {repo_id_of(self)} failed: {short(error)}. Nothing is lost: model and card are in "
            f"{self.args.output_dir}. Push them later with:\n    {self._later_command(revision)}"
        )

    def _later_command(self, revision: str | None = None) -> str:
        args, folder = self.args, str(self.args.output_dir)
        return later_command(folder, repo_id_of(self), args.hub_private_repo, revision or args.hub_revision)

    # --- the card ---

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `README.md`: a card of the recorded facts, or this library's section in another Trainer's own card.

        A card that somebody changed by hand is kept; its section on the training is brought up to date.

        Args:
            args: those of the create_model_card of the Trainer behind the mixin.
            kwargs: the same; for a plain `Trainer`: `language`, `license`, `tags`, `model_name`, `finetuned_from`,
                `tasks`, `dataset`, `dataset_tags`, `dataset_args`.
        """
        if not self.is_world_process_zero():
            return
        if self._has_its_own_card():
            super().create_model_card(*args, **kwargs)
        else:
            self._write_card(asdict(CardArguments(*args, **kwargs)))
        self._is_saved = True

    def _write_card(self, card: dict[str, Any]) -> None:
        path = Path(str(self.args.output_dir)) / CARD_NAME
        if path.is_file() and not is_generated(read_card(path)):
            logger.warning(f"{path} was changed by hand and is kept; only its section on the training is renewed.")
            self._write_section(card)
        else:
            self.draw_learning_curves(path.parent / CURVES_NAME)
            write_whole(path, render_card(self.card_facts(**card)).encode())

    def draw_learning_curves(self, path: Path) -> None:
        """Draw what was logged, where matplotlib is installed and something was."""
        points = curves(self.state.log_history)
        if not points or find_spec("matplotlib") is None:
            return
        from hf_amp.hub.learning_curves import save_learning_curves

        save_learning_curves(path, [{"curves": points, "eval_split": self.evaluated_split}], repo_id_of(self))
