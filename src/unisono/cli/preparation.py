"""Getting a model ready for use: its licence notice, and its conversion on the first run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unisono.cli.child import Report, in_child
from unisono.cli.terminal import dim, err, progress_bar
from unisono.config import state_directory
from unisono.errors import ConfigurationError

if TYPE_CHECKING:
    from unisono.models.store import StoredModel


def prepared(model: str) -> StoredModel:
    """The converted form of a model, converted now with a progress bar if it is not here yet.

    Raises:
        ModelError, ConfigurationError: as `ModelStore.ensure`.
    """
    from unisono.models.catalog import CATALOG
    from unisono.models.store import ModelStore
    from unisono.types import ModelId, is_hex

    show_notice(model)
    store = ModelStore()
    # Other sources need torch even to be looked up.
    if model in CATALOG or model.endswith(".gguf") or is_hex(model, 32):
        stored = store.cached(model)
        if stored is not None:
            return stored
    with progress_bar(f"Converting {model}") as report:
        return store.get(ModelId(in_child(convert_model, model, report)))


def convert_model(report: Report, model: str) -> str:
    """Runs in a child: convert a model and return its id."""
    from unisono.models.store import ModelStore

    return ModelStore().ensure(model, report).id


def show_notice(model: str) -> None:
    """A catalog model's licence notice on stderr, once per user.

    Raises:
        ConfigurationError: the state directory cannot be written.
    """
    from unisono.models.catalog import license_notice

    notice = license_notice(model)
    if notice is None:
        return
    marker = state_directory() / "notices" / model
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {marker}: {error.strerror}; set UNISONO_STATE to a folder of yours"
        ) from error
    dim(notice, err)
