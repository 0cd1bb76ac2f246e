"""Credential provider plugins: real executables that use the kubelet's exec protocol."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagegate.api.references import parse
from imagegate.registry import errors, plugin, provider_config
from imagegate.registry.limits import Timing
from imagegate.registry.manifests import Manifests
from imagegate.registry.platforms import Platform
from imagegate.registry.plugin import CacheKeyType
from imagegate.registry.provider_config import duration, read
from imagegate.registry.providers import AT_ONCE, Providers
from tests.unit.cli import parsing
from tests.unit.registry.conftest import PASSWORD, USER, Counter, MakeClient
from tests.unit.registry.distribution import Registry
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring

V1 = "credentialprovider.kubelet.k8s.io/v1"
IMAGE = "reg.test/team/app"


class Plugins:
    """A directory of executables that run a test's script and log each run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "config.yaml"
        self.entries: list[dict[str, Any]] = []

    def add(self, script: str, name: str = "cloud", **changes: Any) -> Plugins:
        path = self.folder / name
        log = self.log(name)
        path.write_text(
            f"#!{sys.executable} -S\n"
            "import json, os, sys, time\n"
            "request = json.load(sys.stdin)\n"
            f"with open({str(log)!r}, 'a') as log:\n"
            "    print(json.dumps([request, sys.argv[1:], dict(os.environ)]), file=log)\n"
            f"{script}\n"
        )
        path.chmod(0o755)
        entry = {
            "name": name,
            "apiVersion": V1,
            "matchImages": ["reg.test", "*.reg.test", "127.0.0.1"],
            "defaultCacheDuration": "1h",
        }
        self.entries.append({**entry, **changes})
        return self

    def log(self, name: str = "cloud") -> Path:
        return self.folder / f"{name}.runs"

    def runs(self, name: str = "cloud") -> list[tuple[dict[str, Any], list[str], dict[str, str]]]:
        log = self.log(name)
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()]

    def asked(self, name: str = "cloud") -> list[str]:
        return [request["image"] for request, _, _ in self.runs(name)]

    def read(self) -> tuple[provider_config.Provider, ...]:
        document = {
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": self.entries,
        }
        self.file.write_text(yaml.safe_dump(document))
        return read(str(self.file), str(self.folder))


def answer(
    auth: dict[str, Any] | None = None, *, key: str = "Registry", **changes: Any
) -> dict[str, Any]:
    logins = {"reg.test": {"username": "u", "password": "p"}} if auth is None else auth
    kind = "CredentialProviderResponse"
    return {"apiVersion": V1, "kind": kind, "cacheKeyType": key, "auth": logins, **changes}


def saying(document: object, before: str = "") -> str:
    return f"{before}\nprint({json.dumps(document)!r})"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    return Plugins(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[[], Providers]


@pytest.fixture
async def make(plugins: Plugins, clock: Clock) -> AsyncIterator[Make]:
    made: list[Providers] = []

    def providers() -> Providers:
        made.append(Providers(plugins.read(), Timing(monotonic=clock.monotonic)))
        return made[-1]

    yield providers
    for each in made:
        await each.close()


async def logins(providers: Providers, image: str = IMAGE) -> list[tuple[str, str]]:
    found = await providers.lookup(image)
    assert not found.problems
    return [(c.username, c.password) for c in found.credentials]


async def until_gone(pid: int) -> None:
    """Waits until the process has ended. A zombie counts as ended: it has no command line."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: ASYNC230, PTH123
                if not file.read():
                    return
        except (FileNotFoundError, ProcessLookupError):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


class TestProtocol:
    async def test_plugin_gets_request_arguments_and_environment(
        self, plugins: Plugins, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/imagegate")
        monkeypatch.setenv("AZURE_TENANT_ID", "outside")
        monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
        monkeypatch.setenv("DATABASE_PASSWORD", "none of its business")
        env = [{"name": "AZURE_TENANT_ID", "value": "inside"}, {"name": "EMPTY", "value": ""}]
        plugins.add(saying(answer()), args=["get-credentials", "--v=3; $HOME"], env=env)
        assert await logins(make()) == [("u", "p")]
        [(request, args, environ)] = plugins.runs()
        assert request == {"apiVersion": V1, "kind": "CredentialProviderRequest", "image": IMAGE}
        assert args == ["get-credentials", "--v=3; $HOME"], "no shell expands the arguments"
        assert environ["AWS_ROLE_ARN"] == "arn:aws:iam::1:role/imagegate"
        assert environ["AZURE_TENANT_ID"] == "inside"
        assert environ["https_proxy"] == "http://proxy.test:3128"
        assert environ["EMPTY"] == ""
        assert environ["PATH"] == os.environ["PATH"]
        assert "DATABASE_PASSWORD" not in environ

    async def test_older_protocol_version_is_used_in_request_and_answer(
        self, plugins: Plugins, make: Make
    ) -> None:
        older = "credentialprovider.kubelet.k8s.io/v1beta1"
        plugins.add(saying(answer(apiVersion=older)), apiVersion=older)
        assert await logins(make()) == [("u", "p")]
        assert plugins.runs()[0][0]["apiVersion"] == older

    @pytest.mark.parametrize("auth", [None, {}])
    async def test_answer_without_credentials_is_valid_and_cached(
        self, plugins: Plugins, make: Make, auth: object
    ) -> None:
        plugins.add(saying(answer() | {"auth": auth}))
        providers = make()
        assert await logins(providers) == []
        assert await logins(providers) == []
        assert len(plugins.runs()) == 1, "an empty answer is cached"

    async def test_most_specific_entry_is_first_then_the_first_provider(
        self, plugins: Plugins, make: Make
    ) -> None:
        def login(name: str, *places: str) -> str:
            return saying(answer({p: {"username": f"{name} {p}", "password": "p"} for p in places}))

        plugins.add(login("a", "reg.test", "other.test"), "a")
        plugins.add(login("b", "reg.test/team", "reg.test"), "b")
        found = [username for username, _ in await logins(make())]
        assert found == ["b reg.test/team", "a reg.test", "b reg.test"]

    @pytest.mark.parametrize(
        ("pattern", "image", "asked"),
        [
            ("reg.test", "reg.test/app", True),
            ("reg.test/team", "reg.test/team/app", True),
            ("reg.test/team", "reg.test/other/app", False),
            ("reg.test:5000", "reg.test/app", False),
            ("reg.test:5000", "reg.test:5000/app", True),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
                True,
            ),
            ("*.dkr.ecr.*.amazonaws.com", "public.ecr.aws/app", False),
            ("*.pkg.dev", "europe-docker.pkg.dev/project/repository/app", True),
            ("*.azurecr.io", "team.azurecr.io/app", True),
            ("*.azurecr.io", "a.team.azurecr.io/app", False),
        ],
    )
    def test_match_images_decides_for_which_images_a_plugin_runs(
        self, plugins: Plugins, pattern: str, image: str, asked: bool
    ) -> None:
        [provider] = plugins.add("", matchImages=["nowhere.test", pattern]).read()
        assert provider.matches(image) is asked

    async def test_plugin_does_not_run_for_an_image_that_does_not_match(
        self, plugins: Plugins, make: Make
    ) -> None:
        plugins.add(saying(answer()))
        assert await logins(make(), "docker.io/library/busybox") == []
        assert not plugins.log().exists()


class TestCache:
    @pytest.mark.parametrize(
        ("key", "runs"),
        [
            (CacheKeyType.IMAGE, ["reg.test/a", "reg.test/b", "x.reg.test/a"]),
            (CacheKeyType.REGISTRY, ["reg.test/a", "x.reg.test/a"]),
            (CacheKeyType.GLOBAL, ["reg.test/a"]),
        ],
    )
    async def test_answer_is_cached_for_image_registry_or_all(
        self, plugins: Plugins, make: Make, key: CacheKeyType, runs: list[str]
    ) -> None:
        plugins.add(saying(answer(key=key.value)))
        providers = make()
        for image in ["reg.test/a", "reg.test/b", "x.reg.test/a"] * 2:
            await providers.lookup(image)
        assert plugins.asked() == runs

    @pytest.mark.parametrize(
        ("said", "default", "seconds"),
        [
            ({"cacheDuration": "90s"}, "1h", 90.0),
            ({"cacheDuration": "6h0m0s"}, "1s", 6 * 3600.0),
            ({"cacheDuration": None}, "2m", 120.0),
            ({}, "2m", 120.0),
        ],
    )
    async def test_cache_duration_is_that_of_the_answer_or_the_configuration(
        self,
        plugins: Plugins,
        make: Make,
        clock: Clock,
        said: dict[str, Any],
        default: str,
        seconds: float,
    ) -> None:
        plugins.add(saying(answer(**said)), defaultCacheDuration=default)
        providers = make()
        await logins(providers)
        clock.now += seconds - 1
        assert await logins(providers) == [("u", "p")]
        assert len(plugins.runs()) == 1
        clock.now += 2
        assert await logins(providers) == [("u", "p")]
        assert len(plugins.runs()) == 2

    @pytest.mark.parametrize(
        ("said", "default"), [({"cacheDuration": "0s"}, "1h"), ({}, "0"), ({}, "0s")]
    )
    async def test_answer_with_duration_zero_is_not_cached(
        self, plugins: Plugins, make: Make, said: dict[str, Any], default: str
    ) -> None:
        plugins.add(saying(answer(**said)), defaultCacheDuration=default)
        providers = make()
        await logins(providers)
        await logins(providers)
        assert len(plugins.runs()) == 2

    @pytest.mark.parametrize("said", ["1h", "0s"])
    async def test_concurrent_lookups_share_a_run(
        self, plugins: Plugins, make: Make, said: str
    ) -> None:
        plugins.add(saying(answer(cacheDuration=said), "time.sleep(0.2)"))
        providers = make()
        one, other = await asyncio.gather(logins(providers), logins(providers))
        assert one == other == [("u", "p")]
        assert len(plugins.runs()) == 1

    async def test_concurrent_images_of_a_registry_share_a_run(
        self, plugins: Plugins, make: Make
    ) -> None:
        plugins.add(saying(answer(), "time.sleep(0.2)"))
        providers = make()
        await asyncio.gather(*(providers.lookup(f"reg.test/{n}") for n in range(5)))
        assert plugins.asked() == ["reg.test/0"]

    async def test_number_of_concurrent_runs_is_limited(self, plugins: Plugins, make: Make) -> None:
        running = plugins.folder / "running"
        running.mkdir()
        script = (
            f"mine = {str(running)!r} + '/' + str(os.getpid())\n"
            "open(mine, 'w').close()\n"
            "time.sleep(0.3)\n"
            f"count = len(os.listdir({str(running)!r}))\n"
            "os.unlink(mine)\n"
            "registry = request['image'].split('/')[0]\n"
            "auth = {registry: {'username': str(count), 'password': 'p'}}\n"
            f"print(json.dumps({{**json.loads({json.dumps(answer())!r}), 'auth': auth}}))"
        )
        plugins.add(script)
        providers = make()
        found = await asyncio.gather(
            *(logins(providers, f"{n}.reg.test/app") for n in range(AT_ONCE * 2))
        )
        counts = [int(username) for [(username, _)] in found]
        assert max(counts) <= AT_ONCE
        assert max(counts) > 1

    async def test_failure_is_not_cached(self, plugins: Plugins, make: Make) -> None:
        first = f"sys.exit(3) if len(open({str(plugins.log())!r}).readlines()) < 2 else None"
        plugins.add(saying(answer(), first))
        providers = make()
        [problem] = (await providers.lookup(IMAGE)).problems
        assert problem == "credential provider cloud: exit status 3"
        assert await logins(providers) == [("u", "p")]

    async def test_cancelled_lookup_does_not_end_the_run(
        self, plugins: Plugins, make: Make
    ) -> None:
        plugins.add(saying(answer(), "time.sleep(0.3)"))
        providers = make()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await providers.lookup(IMAGE)
        assert await logins(providers) == [("u", "p")]
        assert len(plugins.runs()) == 1

    async def test_close_ends_the_run(self, plugins: Plugins, make: Make) -> None:
        pid = plugins.folder / "pid"
        plugins.add(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
        providers = make()
        asking = asyncio.create_task(providers.lookup(IMAGE))
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.02)
        await providers.close()
        await asyncio.gather(asking, return_exceptions=True)
        await until_gone(int(pid.read_text()))


class TestFailures:
    """Each failure is returned and not raised, and its text contains nothing of the answer."""

    async def problem(self, providers: Providers) -> str:
        found = await providers.lookup(IMAGE)
        assert found.credentials == ()
        [problem] = found.problems
        return problem.removeprefix("credential provider cloud: ")

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("print('no region', file=sys.stderr); sys.exit(2)", "exit status 2: no region"),
            ("os.kill(os.getpid(), 9)", "ended by signal 9"),
            ("print('s3cret')", "its answer is not a JSON object"),
            ("", "its answer is not a JSON object"),
            ("print('[]')", "its answer is not a JSON object"),
            ("print('x' * 300000)", "it answered with more than 262144 bytes"),
            ("while True: print('x' * 1000)", "it answered with more than 262144 bytes"),
            (
                saying(answer(apiVersion="credentialprovider.kubelet.k8s.io/v1alpha1")),
                f"it answered in credentialprovider.kubelet.k8s.io/v1alpha1, not in {V1}",
            ),
            (saying(answer(apiVersion="s3cret")), f"it answered in something else, not in {V1}"),
            (saying(answer(kind="s3cret")), "its answer is not a CredentialProviderResponse"),
            (saying(answer(key="s3cret")), "its cacheKeyType is none of Image, Registry, Global"),
            (saying(answer(cacheDuration="s3cret")), "its cacheDuration is not a duration"),
            (saying(answer(cacheDuration=60)), "its cacheDuration is not a duration"),
            (saying(answer() | {"auth": ["s3cret"]}), "its auth is not an object"),
            (
                saying(answer({"reg.test": "s3cret"})),
                "an entry of its auth is not a username and password",
            ),
        ],
    )
    async def test_failure_is_described(
        self, plugins: Plugins, make: Make, script: str, expected: str
    ) -> None:
        plugins.add(script)
        assert await self.problem(make()) == expected

    async def test_missing_executable_is_a_failure(self, plugins: Plugins, make: Make) -> None:
        plugins.add("")
        providers = make()
        (plugins.folder / "cloud").unlink()
        assert await self.problem(providers) == "it cannot be run: No such file or directory"

    async def test_plugin_that_times_out_is_killed_with_its_children(
        self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid = plugins.folder / "pid"
        script = (
            "child = os.fork()\n"
            f"if child: open({str(pid)!r}, 'w').write(str(child)); sys.exit(0)\n"
            "print('waiting for the cloud', file=sys.stderr, flush=True)\n"
            "time.sleep(60)"
        )
        [provider] = plugins.add(script).read()
        with pytest.raises(plugin.PluginFailed, match="within 3 s: waiting for the cloud"):
            await plugin.run(provider, IMAGE, timeout=3)
        await until_gone(int(pid.read_text()))

    async def test_plugin_that_does_not_read_its_request_is_accepted(
        self, plugins: Plugins
    ) -> None:
        [provider] = plugins.add("").read()
        script = f"#!/bin/sh\nexec 0<&-\necho '{json.dumps(answer())}'\n"
        (plugins.folder / "cloud").write_text(script)
        response = await plugin.run(provider, "reg.test/" + "a" * 200_000, timeout=10)
        assert list(response.entries) == ["reg.test"]

    async def test_stderr_in_the_failure_is_bounded_and_has_no_secret(
        self, plugins: Plugins, make: Make
    ) -> None:
        secret, token = "client-secret", "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEyMyJ9.eyJhIjoxfQ"
        said = f"bad {secret} {token} {'0a' * 20} at /var/run/secrets/tokens/cloud-identity-token"
        plugins.add(
            f"print('x ' * 50000, file=sys.stderr); print({said!r}, file=sys.stderr); sys.exit(1)",
            env=[{"name": "CLIENT_SECRET", "value": secret}],
        )
        problem = await self.problem(make())
        assert len(problem) < 400
        assert problem.endswith("x bad *** *** *** at /var/run/secrets/tokens/cloud-identity-token")

    async def test_stderr_is_kept_up_to_a_bound(self) -> None:
        dialogue = plugin._Dialogue()
        for _ in range(100):
            dialogue.pipe_data_received(2, b"x" * 1000)
        dialogue.pipe_data_received(2, b"end")
        assert len(dialogue.complaint) == 4096
        assert dialogue.complaint.endswith(b"xend")

    async def test_failure_of_a_provider_does_not_stop_the_next_provider(
        self, plugins: Plugins, make: Make
    ) -> None:
        plugins.add("sys.exit(1)", "broken").add(saying(answer()))
        found = await make().lookup(IMAGE)
        assert [c.username for c in found.credentials] == ["u"]
        assert found.problems == ("credential provider broken: exit status 1",)


class TestConfiguration:
    def test_no_configuration_means_no_providers(self) -> None:
        assert read("", "") == ()

    @pytest.mark.parametrize(("config", "directory"), [("/a", ""), ("", "/a")])
    def test_configuration_and_directory_are_required_together(
        self, config: str, directory: str
    ) -> None:
        with pytest.raises(errors.InvalidSettings, match="both or neither"):
            read(config, directory)

    @pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
    def test_json_and_every_api_version_are_read(self, plugins: Plugins, version: str) -> None:
        plugins.add("", env=[{"name": "A", "value": "b"}], args=["x"], tokenAttributes=None).read()
        document = yaml.safe_load(plugins.file.read_text())
        document["apiVersion"] = f"kubelet.config.k8s.io/{version}"
        plugins.file.write_text(json.dumps(document))
        [provider] = read(str(plugins.file), str(plugins.folder))
        assert (provider.name, provider.api_version) == ("cloud", V1)
        assert (provider.args, provider.env, provider.cache_seconds) == (("x",), {"A": "b"}, 3600.0)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"name": "../cloud"}, r"providers\[0\].name: it must be the name of a file"),
            ({"name": ".."}, "name of a file"),
            ({"name": "a b"}, "name of a file"),
            ({"name": None}, "name of a file"),
            ({"name": "other"}, "there is no executable .*/other"),
            ({"name": "config.yaml"}, "there is no executable .*/config.yaml"),
            ({"apiVersion": "v1"}, r"apiVersion: it must be credentialprovider.kubelet.k8s.io/v1"),
            ({"defaultCacheDuration": None}, "defaultCacheDuration: it must be a duration"),
            ({"defaultCacheDuration": "-1s"}, "defaultCacheDuration"),
            ({"defaultCacheDuration": 60}, "defaultCacheDuration"),
            ({"matchImages": []}, "matchImages: at least one"),
            ({"matchImages": "reg.test"}, "matchImages: it must be a list"),
            ({"matchImages": ["reg.test:x"]}, r"matchImages\[0\]: reg.test:x is not a host"),
            ({"args": [1]}, "args: it must be a list of strings"),
            ({"env": {"A": "b"}}, "env: it must be a list of name and value"),
            ({"env": [{"name": "A", "valeu": "b"}]}, "env: it must be a list of name and value"),
            ({"env": [{"name": "A=B", "value": "b"}]}, "env: a variable needs a name"),
            ({"env": [{"name": "A", "value": 1}]}, "env: it must be a list of strings"),
            ({"tokenAttributes": {"cacheType": "Token"}}, "tokenAttributes: .* are not supported"),
            ({"matchImage": ["a"]}, r"providers\[0\] has unknown fields: matchImage"),
        ],
    )
    def test_invalid_provider_is_rejected_with_its_field(
        self, plugins: Plugins, changes: dict[str, Any], expected: str
    ) -> None:
        plugins.add("").entries[0] |= changes
        with pytest.raises(errors.InvalidSettings, match=expected):
            plugins.read()

    def test_duplicate_name_is_rejected(self, plugins: Plugins) -> None:
        plugins.add("").add("")
        with pytest.raises(errors.InvalidSettings, match="cloud is there twice"):
            plugins.read()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("kind: Config\nenv: s3cret", "it is not a CredentialProviderConfig"),
            ("kind: CredentialProviderConfig\napiVersion: v1", "apiVersion is not kubelet.config"),
            ("a: 's3cret", "it is not YAML"),
            ("", "it is not a CredentialProviderConfig"),
            (
                "{kind: CredentialProviderConfig, apiVersion: kubelet.config.k8s.io/v1}",
                "providers: at least one is needed",
            ),
        ],
    )
    def test_file_that_is_no_configuration_is_rejected(
        self, tmp_path: Path, text: str, expected: str
    ) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(errors.InvalidSettings, match=expected) as caught:
            read(str(path), str(tmp_path))
        assert "s3cret" not in str(caught.value)

    def test_operator_flags_set_the_providers(self, plugins: Plugins) -> None:
        providers = plugins.add("").read()
        flags = [
            f"--credential-provider-config={plugins.file}",
            f"--credential-provider-bin-dir={plugins.folder}",
        ]
        assert parsing.operator(["run", *flags]).registry.credential_providers == providers
        (plugins.folder / "cloud").chmod(0o644)
        with pytest.raises(errors.InvalidSettings, match="there is no executable"):
            parsing.operator(["run", *flags])

    def test_missing_file_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(errors.InvalidSettings, match="cannot be read: No such file"):
            read(str(tmp_path / "none"), str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("12h", 43200.0),
            ("1h30m", 5400.0),
            ("1.5s", 1.5),
            (".5m", 30.0),
            ("6h0m0s", 21600.0),
            ("100ms", 0.1),
            ("1µs", 1e-6),
            ("-2s", -2.0),
            ("0", 0.0),
            ("0s", 0.0),
            ("1", None),
            ("", None),
            ("1d", None),
            ("1h ", None),
            ("h", None),
            (60, None),
            (None, None),
        ],
    )
    def test_duration_is_read_as_go_does(self, text: object, seconds: float | None) -> None:
        assert duration(text) == (None if seconds is None else pytest.approx(seconds))


class TestWithARegistry:
    """Debian's docker-registry with Basic authentication."""

    def login(self, domain: str, password: str = PASSWORD) -> str:
        return saying(answer({domain: {"username": USER, "password": password}}))

    def matching(self, plugins: Plugins, script: str, registry: Registry) -> Any:
        return plugins.add(script, matchImages=[registry.domain]).read()

    async def test_credentials_of_the_plugin_are_used(
        self, basic_registry: Registry, plugins: Plugins, make_client: MakeClient, counter: Counter
    ) -> None:
        pushed = basic_registry.image("cloud/app", "v1", layers=(b"one", b"two"))
        reference = parse(f"{basic_registry.domain}/cloud/app:v1")
        with pytest.raises(errors.Unauthorized):
            await make_client().resolve(reference)
        providers = self.matching(plugins, self.login(basic_registry.domain), basic_registry)
        manifests = Manifests(make_client(credential_providers=providers))
        facts = await manifests.describe(reference, Platform.of("linux", "amd64"))
        assert facts.reference.digest == pushed["digest"]
        assert facts.compressed_bytes == facts.config_bytes + 6
        assert plugins.asked() == [f"{basic_registry.domain}/cloud/app"], (
            "one run for three requests"
        )

    async def test_plugin_credentials_are_tried_after_refused_pull_secrets(
        self, scripted: Scripted, plugins: Plugins, make_client: MakeClient
    ) -> None:
        challenge = {"WWW-Authenticate": 'Basic realm="r"'}
        scripted.say("HEAD", "/v2/team/app/manifests/v1", 401, headers=challenge)
        logins = answer({scripted.domain: {"username": "plugin", "password": "b"}})
        providers = plugins.add(saying(logins), matchImages=[scripted.domain]).read()
        reference = parse(f"{scripted.domain}/team/app:v1")
        with pytest.raises(
            errors.Unauthorized, match="and the credential provider cloud"
        ) as caught:
            await make_client(credential_providers=providers).resolve(
                reference, keyring((scripted.domain, "secret", "a"))
            )
        assert "the secret" not in str(caught.value)
        sent = list(dict.fromkeys(s.authorization for s in scripted.seen if s.authorization))
        assert sent == ["Basic c2VjcmV0OmE=", "Basic cGx1Z2luOmI="]

    async def test_same_password_is_not_tried_twice(
        self, basic_registry: Registry, plugins: Plugins, make_client: MakeClient, counter: Counter
    ) -> None:
        login = self.login(basic_registry.domain, "wrong")
        providers = self.matching(plugins, login, basic_registry)
        with pytest.raises(errors.Unauthorized, match="the secret ml/pull-0"):
            await make_client(credential_providers=providers).resolve(
                parse(f"{basic_registry.domain}/cloud/app:v1"),
                keyring((basic_registry.domain, USER, "wrong")),
            )
        assert len(plugins.runs()) == 1
        assert [code for _, code in counter.codes] == ["401", "401"], "the challenge, and one login"

    async def test_plugin_does_not_run_if_a_pull_secret_is_accepted(
        self, basic_registry: Registry, plugins: Plugins, make_client: MakeClient
    ) -> None:
        pushed = basic_registry.image("cloud/app", "v1")
        providers = self.matching(plugins, "sys.exit(1)", basic_registry)
        digest = await make_client(credential_providers=providers).resolve(
            parse(f"{basic_registry.domain}/cloud/app:v1"),
            keyring((basic_registry.domain, USER, PASSWORD)),
        )
        assert digest == pushed["digest"]
        assert not plugins.log().exists(), "the plugin did not run"

    async def test_failure_of_the_plugin_is_part_of_the_refusal(
        self, basic_registry: Registry, plugins: Plugins, make_client: MakeClient
    ) -> None:
        script = "print('no identity', file=sys.stderr); sys.exit(1)"
        providers = self.matching(plugins, script, basic_registry)
        with pytest.raises(errors.NoCredentials) as caught:
            await make_client(credential_providers=providers).resolve(
                parse(f"{basic_registry.domain}/cloud/app:v1")
            )
        assert not caught.value.permanent
        assert str(caught.value) == (
            f"{basic_registry.domain}: cloud/app needs a user name and password, and credential"
            " provider cloud: exit status 1: no identity; check the plugin's configuration, and"
            " the operator's rights in the cloud"
        )
