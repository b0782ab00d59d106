"""A Django project in one file: a form with its CSRF token, sessions, an upload, downloads, static files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import django
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

HERE = Path(__file__).parent
PIECE = bytes(range(256)) * 64

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.sessions", "django.contrib.staticfiles"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    STATICFILES_DIRS=[HERE / "static"],
    STATIC_URL="/static/",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)
django.setup()

PAGE = """<!doctype html>
<html lang="en">
<head><title>prefork and Django</title><link rel="stylesheet" href="/static/site.css"></head>
<body>
<h1>A page of Django's</h1>
<p id="script">the script did not run</p>
<form method="post" action="/greet">{% csrf_token %}<input name="name" value="you"><button>Greet</button></form>
<script src="/static/site.js"></script>
</body>
</html>
"""


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(PAGE).render({}, request))


def greet(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(f"hello {request.POST['name']}, visit {request.session['visits']}")


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    received = request.FILES["file"]
    return HttpResponse(f"{received.name} {hashlib.sha256(received.read()).hexdigest()}")


def streamed(_request: HttpRequest, pieces: int) -> StreamingHttpResponse:
    def produce() -> Iterator[bytes]:
        for _ in range(pieces):
            yield PIECE

    return StreamingHttpResponse(produce(), content_type="application/octet-stream")


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(request.GET["path"], "rb"), as_attachment=True)


def whoami(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.META['REMOTE_ADDR']} {request.scheme} {request.get_host()}")


urlpatterns = [
    path("", page),
    path("greet", greet),
    path("upload", upload),
    path("streamed/<int:pieces>", streamed),
    path("file", file),
    path("whoami", whoami),
]
app = StaticFilesHandler(WSGIHandler())
