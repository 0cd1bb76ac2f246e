"""Lists of tags: pages, limits, logins, and registries that misbehave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from yarl import URL

from imagegate import cli
from imagegate.api.references import Reference, parse
from imagegate.registry import errors, tags
from imagegate.registry.tags import Pages
from tests.unit.registry.conftest import PASSWORD, USER, MakeClient
from tests.unit.registry.distribution import Registry
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring

PATH = "/v2/ml/llm/tags/list"
URL_ = URL("https://reg.test/v2/ml/llm/tags/list?n=1000")


@pytest.fixture
def reference(scripted: Scripted) -> Reference:
    return parse(f"{scripted.domain}/ml/llm")


def page(*names: object) -> bytes:
    return json.dumps({"name": "ml/llm", "tags": names}).encode()


def paged(
    names: list[str], link: Callable[[str, int], str], most: int = 1000
) -> Callable[[web.Request], web.StreamResponse]:
    """Answers as Distribution v3 does, with at most ``most`` tags."""

    def answer(request: web.Request) -> web.StreamResponse:
        count = min(int(request.query["n"]), most)
        after = request.query.get("last", "")
        found = [name for name in names if name > after]
        headers = {"Link": link(found[count - 1], count)} if len(found) > count else {}
        return web.Response(body=page(*found[:count]), headers=headers)

    return answer


def serve(scripted: Scripted, answer: Callable[[web.Request], web.StreamResponse]) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    scripted.on("GET", PATH, handle)


async def test_tags_of_a_real_registry(open_registry: Registry, make_client: MakeClient) -> None:
    for name in ("main-1", "main-2"):
        open_registry.image("tags/app", name)
    client = make_client()
    found = await client.tags(parse(f"{open_registry.domain}/tags/app"))
    assert sorted(found) == ["main-1", "main-2"]
    with pytest.raises(errors.NotFound, match="the list of tags of tags/none was not found"):
        await client.tags(parse(f"{open_registry.domain}/tags/none"))


async def test_tags_of_a_private_registry_need_the_secret(
    basic_registry: Registry, make_client: MakeClient
) -> None:
    basic_registry.image("tags/private", "1")
    reference = parse(f"{basic_registry.domain}/tags/private")
    client = make_client()
    with pytest.raises(errors.Unauthorized, match="imagePullSecrets"):
        await client.tags(reference)
    login = keyring((basic_registry.domain, USER, PASSWORD))
    assert await client.tags(reference, login) == ("1",)


@pytest.mark.parametrize(
    "link",
    [
        lambda last, n: f'</v2/ml/llm/tags/list?last={last}&n={n}>; rel="next"',
        lambda last, n: f"<https://inside.test:5000{PATH}?n={n}&last={last}>;rel=next",
        lambda last, n: f'<?n={n}&last={last}> ; rel="next", <?first>; rel="first"',
    ],
    ids=["path", "another host", "query"],
)
@pytest.mark.parametrize("most", [1000, 100])
async def test_ten_thousand_tags_in_pages(
    scripted: Scripted,
    make_client: MakeClient,
    reference: Reference,
    link: Callable[[str, int], str],
    most: int,
) -> None:
    names = sorted(f"main-{number:x}-{number}" for number in range(10_000))
    serve(scripted, paged(names, link, most))
    assert await make_client().tags(reference) == tuple(names)
    assert len(scripted.seen) == 10_000 // most
    assert {seen.query["n"] for seen in scripted.seen} <= {"1000", str(most)}


async def test_all_tags_in_one_page(
    scripted: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    names = [f"main-{number}" for number in range(40_000)]
    scripted.say("GET", PATH, 200, page(*names))
    assert len(await make_client().tags(reference)) == len(names)
    scripted.say("GET", PATH, 200, page(*(f"main-{number}" for number in range(60_000))))
    with pytest.raises(errors.InvalidAnswer, match="more than 50000 tags in one page; delete old"):
        await make_client().tags(reference)


@pytest.mark.parametrize("body", [b'{"name": "a", "tags": null}', b'{"tags": []}', b"{}"])
async def test_repository_without_tags(
    scripted: Scripted, make_client: MakeClient, reference: Reference, body: bytes
) -> None:
    scripted.say("GET", PATH, 200, body)
    assert await make_client().tags(reference) == ()


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"[]", b'{"tags": "a"}', b'{"tags": {"a": 1}}', b"", b'"a"']
)
async def test_answer_that_is_no_list_is_reported(
    scripted: Scripted, make_client: MakeClient, reference: Reference, body: bytes
) -> None:
    scripted.say("GET", PATH, 200, body)
    with pytest.raises(errors.InvalidAnswer, match="the list of tags of ml/llm"):
        await make_client().tags(reference)


async def test_endless_pages_end(
    scripted: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        number = int(request.query.get("last", "0"))
        headers = {"Link": f"<{PATH}?last={number + 1}>; rel=next"}
        return web.Response(body=page("same"), headers=headers)

    serve(scripted, answer)
    with pytest.raises(errors.InvalidAnswer, match="more than 50000 tags or 500 pages"):
        await make_client().tags(reference)
    assert len(scripted.seen) == tags.MOST_PAGES


async def test_throttled_page_fails_the_list(
    scripted: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    """A part of the tags is worse than none: the newest tags may be those that are missing."""

    def answer(request: web.Request) -> web.StreamResponse:
        if "last" in request.query:
            return web.Response(status=429, headers={"Retry-After": "60"})
        return web.Response(body=page("a"), headers={"Link": f'<{PATH}?last=a>; rel="next"'})

    serve(scripted, answer)
    client = make_client()
    with pytest.raises(errors.Throttled):
        await client.tags(reference)
    count = len(scripted.seen)
    with pytest.raises(errors.Throttled):
        await client.tags(reference)
    assert len(scripted.seen) == count, "the registry was asked during the pause"


def test_page_that_names_itself_is_rejected() -> None:
    with pytest.raises(errors.InvalidAnswer, match="names itself as the next page"):
        Pages("reg.test", "ml/llm").add({"tags": []}, "<?n=1000>; rel=next", URL_)


def test_only_the_query_of_the_next_page_is_used() -> None:
    following = Pages("reg.test", "ml/llm").add(
        {"tags": []}, '<http://user:secret@169.254.169.254/latest?last=a%2Bb&n=9>; rel="next"', URL_
    )
    assert str(following) == "https://reg.test/v2/ml/llm/tags/list?last=a%2Bb&n=9"


def test_invalid_tags_are_ignored() -> None:
    pages = Pages("reg.test", "ml/llm")
    odd = ["a", 1, None, "", "-a", "a b", "a" * 129, "a:b", "\u0661", ["a"], "ok_1.2-3"]
    assert pages.add({"tags": odd}, None, URL_) is None
    assert pages.tags == ("a", "ok_1.2-3")


@pytest.mark.parametrize(
    "link",
    ["", "<?last=a>", '<?last=a>; rel="prev"', "?last=a; rel=next", "<" * 9000, "<>; rel=next;"],
)
def test_other_links_are_ignored(link: str) -> None:
    began = time.perf_counter()
    try:
        assert Pages("reg.test", "ml/llm").add({"tags": []}, link, URL_) is None
    except errors.InvalidAnswer:
        assert "next" in link
    assert time.perf_counter() - began < 0.1


class TestCommand:
    """``imagegate tags``."""

    @pytest.fixture
    def file(self, open_registry: Registry, tmp_path: Path) -> Path:
        spec = {
            "repositories": [
                {
                    "repository": f"{open_registry.domain}/tags/command",
                    "filterTags": {"pattern": "^main-(?P<ts>[0-9]+)$", "extract": "$ts"},
                    "policy": {"numerical": {}},
                }
            ]
        }
        body = {"kind": "ImagePrefetch", "metadata": {"name": "builds"}, "spec": spec}
        path = tmp_path / "builds.yaml"
        path.write_text(
            yaml.safe_dump({"apiVersion": "imagegate.dev/v1alpha1", **body}), encoding="utf-8"
        )
        return path

    def test_chosen_tags_are_shown(
        self, open_registry: Registry, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = f"{open_registry.domain}/tags/command"
        assert cli.main(["tags", "-f", str(file)]) == 1
        assert "the list of tags of tags/command was not found" in capsys.readouterr().out
        open_registry.image("tags/command", "latest")
        assert cli.main(["tags", "-f", str(file)]) == 1
        assert "matches filterTags.pattern" in capsys.readouterr().out
        for number in (7, 10, 9):
            open_registry.image("tags/command", f"main-{number}")
        assert cli.main(["tags", "-f", str(file)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "ImagePrefetch builds",
            "",
            "IMAGE",
            f"{name}:main-10",
            f"{name}:main-9",
            "",
            f"2 of 3 matching tags, of 4 in all, of {name}",
        ]
        assert cli.main(["tags", "-f", str(file), "-o", "json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert entry["repositories"][0]["tags"] == ["main-10", "main-9"]

    def test_prefetch_without_repositories_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "images.yaml"
        path.write_text(
            "{apiVersion: imagegate.dev/v1alpha1, kind: ImagePrefetch, metadata: {name: a},"
            " spec: {images: [{image: a}]}}"
        )
        assert cli.main(["tags", "-f", str(path)]) == 1
