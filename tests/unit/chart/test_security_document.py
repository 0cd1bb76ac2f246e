"""docs/security.md lists exactly the rules that the chart can render."""

import re
from collections.abc import Iterator

import pytest

from .rendering import CHECKOUT, NAMESPACE, POLICY_V1, Helm, Object, Release

DOCUMENT = CHECKOUT / "docs" / "security.md"
PLACES = {
    NAMESPACE: "release",
    "default": "default",
    "pullers": "pullers",
    "mirrors": "startAfter",
    "serving": "imagesFrom",
}
VALUES: Object = {
    "puller": {"namespaces": ["pullers"]},
    "startAfter": {"namespaces": ["mirrors"]},
    "imagesFrom": {
        "namespaces": ["serving"],
        "resources": [{"name": "rollouts.argoproj.io", "namespaces": ["serving"]}],
    },
    "hooks": {"enabled": True, "secretName": "hooks"},
    "rbac": {"aggregateToEdit": True},
}
MORE: Object = {
    **VALUES,
    "imagesFrom": {
        "allNamespaces": True,
        "resources": [{"name": "rollouts.argoproj.io", "allNamespaces": True}],
    },
    "prefetchPolicy": {"pullSecrets": ["ml-pull"]},
}

Row = tuple[str, str, str, str]
"""Account, where, resource and verbs, as in the table."""


def test_table_names_every_rule_that_the_chart_renders(helm: Helm) -> None:
    rendered = {
        row for values in (VALUES, MORE) for row in rules(helm.render(values, served=(POLICY_V1,)))
    }
    documented = list(rows(DOCUMENT.read_text(encoding="utf-8")))
    assert len(documented) == len(set(documented)), "the table lists a rule twice"
    missing = ["| " + " | ".join(row) + " |" for row in sorted(rendered - set(documented))]
    excess = ["| " + " | ".join(row) + " |" for row in sorted(set(documented) - rendered)]
    assert (missing, excess) == ([], []), (
        "docs/security.md: add\n" + "\n".join(missing) + "\nremove\n" + "\n".join(excess)
    )


def test_table_has_a_reason_for_each_rule() -> None:
    for line in table(DOCUMENT.read_text(encoding="utf-8")):
        assert len(line) == 5
        assert line[4].endswith("."), line


def test_fence_of_the_chart_is_described(helm: Helm) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    release = helm.render(VALUES, served=(POLICY_V1,))
    names = [name for name in release.of("ValidatingAdmissionPolicy") if "-fence-" in name]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("path", ["docs/security.md", "README.md"])
def test_documents_name_the_way_to_report_a_vulnerability(path: str) -> None:
    assert "SECURITY.md" in (CHECKOUT / path).read_text(encoding="utf-8")
    assert "Report a vulnerability" in (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")


def table(text: str) -> Iterator[list[str]]:
    _, _, after = text.partition("| account | where | resource | verbs | why |\n")
    for line in after.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def rows(text: str) -> Iterator[Row]:
    for account, where, resource, verbs, _ in table(text):
        yield account, where, resource, verbs


def rules(release: Release) -> Iterator[Row]:
    for kind in ("ClusterRole", "Role"):
        bindings = {
            (binding["metadata"].get("namespace"), binding["roleRef"]["name"]): binding
            for binding in release.of(f"{kind}Binding").values()
        }
        for role in release.of(kind).values():
            namespace, name = role["metadata"].get("namespace"), role["metadata"]["name"]
            where = PLACES[namespace] if kind == "Role" else "cluster"
            binding = bindings.get((namespace, name))
            account = _account(binding) if binding else f"people: {name.rpartition('-')[2]}"
            for rule in role["rules"]:
                yield account, where, _resources(rule), ", ".join(rule["verbs"])


def _account(binding: Object) -> str:
    (subject,) = binding["subjects"]
    name = re.sub(r"^imagegate-?", "", subject["name"])
    return name or "operator"


def _resources(rule: Object) -> str:
    """``deployments.apps/scale``, as kubectl writes it."""
    named = "".join(f" named `{name}`" for name in rule.get("resourceNames", ()))
    (group,) = rule["apiGroups"]
    return ", ".join(f"`{_resource(group, each)}`" for each in rule["resources"]) + named


def _resource(group: str, resource: str) -> str:
    plural, slash, sub = resource.partition("/")
    return (f"{plural}.{group}" if group else plural) + slash + sub
