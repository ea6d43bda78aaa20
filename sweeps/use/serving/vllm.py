"""The same interface by vLLM, where there is a GPU and it is installed, through `ray.serve.llm`.

Not tried: it was written after the sources of Ray 2.60, on a machine without a GPU.
"""

import hmac
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ray import serve

from sweeps.use.serving.models import Served
from sweeps.use.serving.requests import Refused
from sweeps.use.trained import Trained
from trainables.errors import InputError
from trainables.models.origin import ADAPTER

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from peft import PeftModel


def is_taken(engine: Literal["auto", "transformers", "vllm"], models: Sequence[Trained]) -> bool:
    """Whether models are served by vLLM. Raises InputError where they are to be, and cannot."""
    if engine == "transformers":
        return False
    why_not = _why_not(models)
    if engine == "vllm" and why_not is not None:
        raise InputError(f"--engine: vllm cannot be taken: {why_not}")
    return why_not is None


def _why_not(models: Sequence[Trained]) -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU"
    if find_spec("vllm") is None:
        return "it is not installed (pip install vllm)"
    for trained in models:
        if not (trained.task.is_language_model and trained.task.continues_text):
            return f"{trained.config.name} is of task {trained.config.task}"
    return None


def application(
    models: Sequence[tuple[Served, Trained]], replicas: int, token: str | None
) -> serve.Application:
    """An engine for each model, behind one router. vLLM reads whole models: adapters are merged
    into their base (what `ray.serve.llm` loads adapters from must be a bucket of a cloud).
    """
    from fastapi import FastAPI
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

    configs = [
        LLMConfig(
            model_loading_config={"model_id": served.name, "model_source": str(_whole(trained))},
            deployment_config={"num_replicas": replicas},
            engine_kwargs={"generation_config": "vllm"},
        )
        for served, trained in models
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if token is not None:
        _ask_for(app, token)
    router = serve.deployment(cast("type[object]", make_fastapi_ingress(OpenAiIngress, app=app)))
    options = OpenAiIngress.get_deployment_options(llm_configs=list(configs))
    ingress = cast("serve.Deployment", router).options(**options)
    return ingress.bind(
        llm_deployments={each.model_id: build_llm_deployment(each) for each in configs},
        model_cards={each.model_id: to_model_metadata(each.model_id, each) for each in configs},
    )


def _whole(trained: Trained) -> Path:
    """A folder with all weights and the tokenizer, whose chat template is the one of training; it
    lasts as long as the machine's temporary files.
    """
    if trained.spec.quantisation != "none":
        raise InputError(
            f"--engine: vllm cannot be taken: {trained.config.name} was trained over a quantised"
            " base; serve it with --engine transformers"
        )
    folder = Path(tempfile.mkdtemp(prefix="finetune-sweeps-vllm-"))
    model: Any = trained.load()
    if (trained.files / ADAPTER).is_file():
        model = _merged(model, trained)
    model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    return folder


def _merged(model: Any, trained: Trained) -> Any:
    if not hasattr(model, "merge_and_unload"):
        raise InputError(
            f"--engine: vllm cannot be taken: the adapter of {trained.config.name} cannot be merged"
            " into its base; serve it with --engine transformers"
        )
    return cast("PeftModel", model).merge_and_unload()


def _ask_for(app: "FastAPI", token: str) -> None:
    """Of every request but that of its health."""
    from fastapi.responses import JSONResponse

    @app.middleware("http")
    async def admit(
        request: "Request", go_on: "Callable[[Request], Awaitable[Response]]"
    ) -> "Response":
        given = request.headers.get("authorization", "").encode()
        if request.url.path == "/health" or hmac.compare_digest(given, f"Bearer {token}".encode()):
            return await go_on(request)
        refused = Refused(401, "a wrong token was given", code="invalid_api_key")
        return JSONResponse(refused.body(), status_code=401)
