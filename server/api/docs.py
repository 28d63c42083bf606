"""The API's page: its OpenAPI description, and Swagger UI served by this server alone."""

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from server.api.private import key_needed

router = APIRouter(include_in_schema=False, dependencies=[Depends(key_needed("docs"))])

FILES_PATH = "/docs/files"
FILES = StaticFiles(packages=[("fastapi_offline", "static")])

# A browser refuses to load anything from elsewhere, or to send a key there.
_OWN_FILES_ONLY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/docs")
async def show_docs() -> HTMLResponse:
    """Return the page; its addresses are relative, for proxies that serve it below a path."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="hyimage",
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="docs/files/favicon.png",
        swagger_ui_parameters={"validatorUrl": None, "persistAuthorization": True},
    )
    page.headers["Content-Security-Policy"] = _OWN_FILES_ONLY
    return page


@router.get("/openapi.json")
async def describe_api(request: Request) -> JSONResponse:
    """Return the OpenAPI description."""
    return JSONResponse(request.app.openapi())
