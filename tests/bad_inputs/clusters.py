"""cluster.yaml: its form, addresses, settings, and secrets that are not where they should be."""

from tests.bad_inputs.case import Case, Cases, Place, text

LAB = """clusters:
  lab:
    jobs: https://ray.example:8265
    settings: {tracking.uri: "https://mlflow.example"}
"""
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
COMMAND = "jobs --profiles {folder}/cluster.yaml --cluster lab"


def _load(place: Place):
    from pipeline.jobs.profiles import find_cluster

    return find_cluster("lab", str(place.folder / "cluster.yaml"))


def _enter(place: Place):
    cluster = _load(place)
    cluster.token()
    cluster.enter()


def form(what: str, content: str | bytes, says: str, where: str = "{folder}/cluster.yaml", through_command: bool = False) -> Case:
    return Case(what, text("cluster.yaml", content), _load, where, says, COMMAND if through_command else "")


def more(what: str, line: str, where: str, says: str, through_command: bool = False) -> Case:
    """The sound file with a line more."""
    return form(what, f"{LAB}    {line}\n", says, f"clusters.lab{where and '.'}{where}", through_command)


def secret(what: str, line: str, where: str, says: str, content: bytes | None = None) -> Case:
    """One that shows where the secret is fetched."""

    def make(place: Place) -> None:
        text("cluster.yaml", f"{LAB}    {line}\n")(place)
        if content is not None:
            (place.folder / "key").write_bytes(content)

    return Case(what, make, _enter, where, says)


CASES: Cases = {
    "cluster-missing": Case("no file", lambda place: None, _load, "{folder}/cluster.yaml", "no such file", COMMAND),
    "cluster-empty": form("an empty file", "", "expected a mapping of keys"),
    "cluster-list": form("a list", "- lab\n", "expected a mapping of keys"),
    "cluster-binary": form("bytes that are no text", b"\xff\xfe" * 9, "is not valid YAML"),
    "cluster-unclosed": form("a bracket that is never closed", "clusters: {\n", "is not valid YAML", through_command=True),
    "cluster-tag": form("a tag that calls a function", "clusters: !!python/object/apply:os.system [id]\n", "tag", through_command=True),
    "cluster-bomb": form("aliases that stand for ten thousand million values", BOMB, "aliases written out"),
    "cluster-deep": form("ten thousand lists in each other", "clusters: " + "[" * 10_000, "nested more than"),
    "cluster-impossible-date": form("a date that does not exist", "clusters: 2026-99-99\n", "is not valid YAML"),
    "cluster-twice": form("a cluster given twice", LAB + "  lab:\n    jobs: http://other:1\n", "given twice", through_command=True),
    "cluster-none": form("no cluster", "clusters: {}\n", "expected `clusters:`"),
    "cluster-list-of-clusters": form("a list of clusters", "clusters: [lab]\n", "expected `clusters:`"),
    "cluster-unknown-part": form("a part that nobody knows", LAB + "cluster: 1\n", "cluster: unknown key"),
    "cluster-unknown-default": form("a default that there is not", LAB + "default: far\n", "default: 'far' is none of lab"),
    "cluster-default-list": form("a list for the default", LAB + "default: [lab]\n", "default: ['lab'] is none of lab"),
    "cluster-name-path": form("a name that is a path", "clusters: {../lab: {jobs: 'http://x:1'}}\n", "is not a name"),
    "cluster-name-number": form("a number for a name", "clusters: {3: {jobs: 'http://x:1'}}\n", "3 is not a name"),
    "cluster-not-there": form("another cluster than is asked for", LAB.replace("lab:", "lap:"), "did you mean 'lap'", "--cluster lab", True),
    "cluster-is-text": form("a text for a cluster", "clusters: {lab: 'http://x:1'}\n", "expected a mapping of keys"),
    "cluster-no-address": form("no address", "clusters: {lab: {description: x}}\n", "jobs: is missing"),
    "cluster-address-ray": form("Ray's own kind of address", "clusters: {lab: {jobs: 'ray://x:10001'}}\n", "'ray://x:10001' is no such address"),
    "cluster-address-password": form("an address with a password", "clusters: {lab: {jobs: 'http://me:hidden@x:1'}}\n", "without credentials", through_command=True),
    "cluster-address-brackets": form("an address that is none", "clusters: {lab: {jobs: 'http://[::1'}}\n", "is no such address"),
    "cluster-address-number": form("a number for an address", "clusters: {lab: {jobs: 8265}}\n", "expected str, got 8265"),
    "cluster-misspelt": more("a misspelt key", "foldr: /x", "foldr", "did you mean 'folder'"),
    "cluster-folder-relative": more("a relative folder", "folder: lab", "", "'lab' is relative"),
    "cluster-code": more("another way to bring code", "code: git", "code", "is not one of carry, installed"),
    "cluster-setting-misspelt": form("a misspelt setting", LAB.replace("tracking.uri", "tracking.url"), "did you mean 'uri'", "clusters.lab: settings"),
    "cluster-setting-of-results": form("a setting that changes results", LAB.replace("tracking.uri: ", "train.lr: 1, tracking.uri: "), "changes what a run learns", "settings.train.lr", True),
    "cluster-setting-password": form("a password among the settings", LAB.replace("https://ml", "https://me:hidden@ml"), "holds a credential", "settings.tracking.uri", True),
    "cluster-setting-interpolation": form("an interpolation", LAB.replace("https://mlflow.example", "${oc.env:HOME}"), "interpolations", "tracking.uri"),
    "cluster-environment-secret": more("a secret among the variables", "environment: {AWS_SECRET_ACCESS_KEY: hidden}", "", "is a secret", True),
    "cluster-environment-name": more("a variable of no possible name", "environment: {'a=b': x}", "", "is not the name of a variable"),
    "cluster-environment-list": more("a list for a variable", "environment: {A: [x]}", "", "expected a text or a number"),
    "cluster-environment-nul": more("a NUL in a variable", 'environment: {A: "a\\0b"}', "", "NUL character"),
    "cluster-token-in-the-open": more("the token itself", "token: hidden", "", "token: name where it is found", True),
    "cluster-token-command": more("a command that prints the token", "token: {command: 'touch @folder@/ran'}", "", "name where it is found", True),
    "cluster-token-two": more("two places for the token", "token: {env: A, file: b}", "", "name where it is found"),
    "cluster-secrets-list": more("a list of secrets", "secrets: [AWS_SECRET_ACCESS_KEY]", "", "expected a mapping of variables"),
    "cluster-secret-in-the-open": more("a secret itself", "secrets: {AWS_SECRET_ACCESS_KEY: hidden}", "", "name where it is found"),
    "cluster-secret-command": more("a command that prints a secret", "secrets: {A: {command: id}}", "", "name where it is found"),
    "cluster-secret-no-file": secret("a secret's file that is not there", "secrets: {A: {file: key}}", "clusters.lab.secrets.A", "key cannot be read"),
    "cluster-secret-empty": secret("a secret's file that is empty", "secrets: {A: {file: key}}", "clusters.lab.secrets.A", "is empty", b""),
    "cluster-secret-binary": secret("a secret's file that is no text", "secrets: {A: {file: key}}", "clusters.lab.secrets.A", "not text", b"\xff\xfe"),
    "cluster-secret-nul": secret("a NUL in a secret's file", "secrets: {A: {file: key}}", "clusters.lab.secrets.A", "NUL character", b"a\0b"),
    "cluster-secret-huge": secret("a secret's file of a megabyte", "secrets: {A: {file: key}}", "clusters.lab.secrets.A", "is larger than", b"x" * 2**20),
    "cluster-secret-two-lines": secret("a token of two lines", "token: {file: key}", "clusters.lab.token", "more than one line", b"a\nb"),
    "cluster-token-no-variable": secret("a token's variable that is not set", "token: {env: TOOD_NO_SUCH_VARIABLE}", "clusters.lab.token", "is not set"),
}  # fmt: skip
