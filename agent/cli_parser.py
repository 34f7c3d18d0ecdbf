"""The arguments of ``proplet``: each command with the function that carries it out, named but not imported."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

DESCRIPTION = "Runs WebAssembly tasks on this device: agent, MQTT broker and manager in one program."

EPILOG = """\
exit codes:
  0 done   1 failed   2 wrong usage   3 no node reachable   4 no such resource
  5 a wait timed out   78 the configuration is wrong   130 interrupted
  `run` gives the guest's own status; 124 after a time limit, 134 after a trap

environment:
  PROPLET_SOCKET       the node to talk to, like --server; PROPLET_TOKEN its token
  PROPLET_CONFIG_FILE  the configuration file, like --config
  PROPLET_DEBUG=1      show tracebacks

first steps:
  proplet demo         see it work, nothing stays behind
  proplet up           start a node: agent, broker and manager on loopback
  proplet apply -f task.yaml, then: proplet get tasks
"""

FORMS = ("table", "wide", "json", "yaml", "name")
CRD_GROUPS = ("abstractmachines.fr", "absmach.eu", "all")  # the reference's, the older first
WAITS = ("completed", "finished", "running")
TOP_KINDS = ("tasks", "proplets")
_RESOURCE = "tasks, proplets, jobs (propellerjobs), federatedjobs or trainingrounds (task, job/NAME work, too)"


class _Parser(argparse.ArgumentParser):
    """Argparse with our words for a mistake: what is wrong in one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"proplet: error: {message}\ntry: {self.prog} --help\n")
        sys.exit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Argparse would list every command; the nearest one is of more use.
        if action.choices is not None and value not in action.choices and action.metavar in ("COMMAND", "ACTION"):
            from proplet.agent.config_reader import did_you_mean

            self.error(f"there is no command `{value}`{did_you_mean(str(value), map(str, action.choices))}")
        super()._check_value(action, value)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Argparse hands unknown flags up to the first parser, which knows neither the command nor its flags.
        options, rest = super().parse_known_args(args, namespace)
        if rest and rest[0].startswith("-"):
            from proplet.agent.config_reader import did_you_mean

            flag = rest[0].partition("=")[0]
            self.error(f"there is no flag `{flag}`{did_you_mean(flag, self._option_string_actions)}")
        return options, rest


def parse(arguments: Sequence[str]) -> Callable[[], int]:
    """Return the command that `arguments` name, ready to be called; wrong usage ends the process with 2."""
    parser = build()
    options = parser.parse_args(arguments)
    target = getattr(options, "target", None)
    if target is None:
        parser.print_help(sys.stderr)
        sys.exit(2)
    return partial(_load_and_run, target, options)


def _load_and_run(target: str, options: argparse.Namespace) -> int:
    module, _, name = target.partition(":")
    command = getattr(import_module(f"proplet.agent.{module}"), name)
    return int(command(options))


def build() -> argparse.ArgumentParser:
    """Return the parser of the whole command; completion scripts are made from it."""
    parser = _Parser(
        prog="proplet", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, target: str, summary: str, *parents: _Parser) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, parents=parents)
        command.set_defaults(target=target)
        return command

    server = _server_options()
    _node_commands(add)
    _manager_command(add)
    _run_command(add)
    _image_commands(add)
    _resource_commands(add, server)
    crds = add("crds", "cli_crds:crds", "print the custom resource definitions, for kubectl apply -f -")
    crds.add_argument(
        "--group", metavar="GROUP", choices=CRD_GROUPS, default=CRD_GROUPS[0],
        help="of the API group propeller.propeller.GROUP: %(choices)s (default: %(default)s)",
    )  # fmt: skip
    add("version", "cli_misc:version", "show the versions of this program and of the node", server)
    completion = add("completion", "cli_misc:completion", "print a completion script for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell")
    return parser


Add = Callable[..., argparse.ArgumentParser]


def _server_options() -> _Parser:
    parent = _Parser(add_help=False)
    parent.add_argument(
        "-s",
        "--server",
        metavar="ADDRESS",
        help="unix:/path/to/proplet.sock or http://host:7070 (default: this machine's)",
    )
    parent.add_argument("--token-file", metavar="FILE", help="a file with the token for a URL")
    return parent


def _node_commands(add: Add) -> None:
    up = add("up", "cli_node:up", "run this node in the foreground, as configured")
    _config_option(up)
    up.add_argument("--mqtt-address", metavar="URL", help="an MQTT broker, such as tcp://host:1883")
    up.add_argument("--domain-id", metavar="ID", help="the domain (tenant) on that broker")
    up.add_argument("--channel-id", metavar="ID", help="the channel")
    up.add_argument("--client-id", metavar="ID", help="this proplet's id and MQTT user")
    up.add_argument("--client-key", metavar="KEY", help="its key; visible to everybody on this machine, better use:")
    up.add_argument("--client-key-file", metavar="FILE", help="a file with the key")
    up.add_argument("--log-level", choices=("debug", "info", "warn", "error"), help="how much to log")
    demo = add("demo", "cli_demo:demo", "run the main job once, show what it cost, leave nothing behind")
    demo.add_argument("--broker", choices=("auto", "mosquitto", "amqtt"), default="auto", help="which broker to use")
    service = add("service", "", "install this program as a service of the machine, or remove it")
    actions = service.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    install = actions.add_parser("install", help="install, enable and start the systemd unit")
    install.add_argument("--no-start", action="store_true", help="only install and enable")
    install.set_defaults(target="cli_node:service_install")
    uninstall = actions.add_parser("uninstall", help="stop the service and remove its unit")
    uninstall.add_argument("--purge", action="store_true", help="remove its state and cache, too")
    uninstall.set_defaults(target="cli_node:service_uninstall")
    config = add("config", "", "check or show this node's configuration")
    views = config.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    for name, summary in (("check", "list everything that is wrong with it"), ("show", "print every setting in force")):
        view = views.add_parser(name, help=summary, description=summary)
        view.set_defaults(target=f"cli_config:{name}")
        _config_option(view)


#: Flags of the reference's operator that mean nothing here.
_OPERATORS_OWN = (
    "enable-http2 webhook-cert-path webhook-cert-name webhook-cert-key "
    "zap-log-level zap-devel zap-encoder zap-stacktrace-level zap-time-encoding"
).split()


def _manager_command(add: Add) -> None:
    """The arguments of the reference's operator, old and new, and ours."""
    command = add("manager", "cli_manager:manager", "run only the manager, of the resources of a Kubernetes cluster")
    _config_option(command)

    def option(*names: str, metavar: str, text: str, **more: Any) -> None:
        command.add_argument(*names, metavar=metavar, help=text, **more)

    def switch(name: str, text: str) -> None:
        command.add_argument(name, nargs="?", const="true", metavar="BOOL", help=text)

    option("--mqtt-address", metavar="URL", text="the MQTT broker, such as tcp://host:1883")
    option("--domain-id", "--tenant-id", metavar="ID", text="the domain (tenant) on it", dest="domain_id")
    option("--channel-id", metavar="ID", text="the channel")
    option("--client-id", "--entity-id", metavar="ID", text="the manager's MQTT client id and user", dest="client_id")
    option(
        "--client-key", "--api-key", metavar="KEY", text="its key; everybody can see it, better use:", dest="client_key"
    )
    option("--client-key-file", metavar="FILE", text="a file with the key")
    option("--mqtt-qos", metavar="N", text="accepted for the reference's manifests; commands always go at QoS 1")
    option("--mqtt-timeout", metavar="TIME", text="how long to wait for the broker's acknowledgement (default: 20s)")
    option("--mqtt-ca-file", metavar="FILE", text="the authorities that the broker's certificate may be of")
    option("--mqtt-cert-file", metavar="FILE", text="the manager's certificate, for a broker that wants one")
    option("--mqtt-key-file", metavar="FILE", text="the key of that certificate")
    option("--kubeconfig", metavar="FILE", text="how to reach the cluster (default: as a pod, or KUBECONFIG)")
    option("--context", metavar="NAME", text="the context of the kubeconfig (default: its current one)")
    only = "manage only this namespace; repeatable (default: WATCH_NAMESPACE, or all)"
    option("-n", "--namespace", metavar="NAME", text=only, action="append", default=[])
    option("--api-group", metavar="GROUP", text="the API group of the resources")
    switch("--leader-elect", "work only while holding the Lease, so that several can run")
    option("--lease-namespace", metavar="NAME", text="where the Lease is (default: the pod's namespace)")
    option("--leader-elect-lease-duration", metavar="TIME", text="how long an unrenewed Lease holds (default: 15s)")
    option(
        "--leader-elect-renew-deadline", metavar="TIME", text="when a leader that cannot renew gives up (default: 10s)"
    )
    option("--leader-elect-retry-period", metavar="TIME", text="how often to renew or try for it (default: 2s)")
    switch("--register", "make resources of proplets that announce themselves")
    option("--health-probe-bind-address", metavar="ADDRESS", text="for /healthz and /readyz (default: :8081; 0: none)")
    _cluster_options(option, switch)
    option("--liveliness-interval", metavar="TIME", text="how often a proplet's lastSeen is written (default: 30s)")
    option("--last-seen-threshold", metavar="TIME", text="how much silence makes a proplet offline (default: 30s)")
    option("--scheduler", metavar="NAME", text="accepted for the reference's manifests; the least loaded is chosen")
    command.add_argument("--log-level", choices=("debug", "info", "warn", "error"), help="how much to log")
    for name in _OPERATORS_OWN:
        command.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    command.add_argument(
        "--remove-finalizers",
        action="store_true",
        help="run nothing: take this manager's finalizers off all resources, before the CRDs are deleted, and end",
    )


def _cluster_options(option: Callable[..., None], switch: Callable[[str, str], None]) -> None:
    """Who may read metrics, and what Proplets of the cluster may name."""
    option("--metrics-bind-address", metavar="ADDRESS", text="for /metrics (default: 0, none)")
    switch("--metrics-secure", "false: /metrics is for everybody; else with a token, or for this machine only")
    option("--metrics-token-file", metavar="FILE", text="a file with what is to be shown for /metrics (bearer token)")
    option("--metrics-cert-path", metavar="DIR", text="the directory of the certificate for /metrics")
    option("--metrics-cert-name", metavar="FILE", text="its file in there (default: tls.crt)", default="tls.crt")
    option("--metrics-cert-key", metavar="FILE", text="its key's file (default: tls.key)", default="tls.key")
    only = "service accounts that k8s Proplets may name, as patterns, with commas (default: default)"
    option("--proplet-service-accounts", metavar="NAMES", text=only)
    only = "Secrets that they may name without the label that gives them to proplets (default: none)"
    option("--proplet-secrets", metavar="NAMES", text=only)


def _config_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="the configuration file instead of the usual one")


def _run_command(add: Add) -> None:
    run = add("run", "cli_run:run", "run one module now, without a broker: results on stdout, cost on stderr")
    run.add_argument("--invoke", metavar="NAME", help="the export to call (default: main, run or _start)")
    run.add_argument("--timeout", metavar="TIME", help="stop it after this time, such as 5s")
    run.add_argument(
        "--env", metavar="K=V", action="append", default=[], help="a variable for the guest; K alone: as it is here"
    )
    run.add_argument(
        "--dir",
        metavar="HOST::GUEST",
        action="append",
        default=[],
        help="a directory for the guest, ::ro for reading only",
    )
    run.add_argument("--http", action="store_true", help="let it make HTTP requests, to anywhere")
    run.add_argument("--memory", metavar="SIZE", help="how much memory it may have, such as 64Mi")
    run.add_argument("-i", "--stdin", action="store_true", help="let the guest read the terminal, too")
    run.add_argument("-q", "--quiet", action="store_true", help="no progress and no cost line")
    _config_option(run)
    run.add_argument("module", metavar="MODULE|IMAGE", help="a .wasm file, or an image such as ghcr.io/org/name:tag")
    arguments = run.add_argument(
        "args", metavar="ARGS", nargs=argparse.REMAINDER, help="arguments; everything from here is the guest's"
    )
    arguments.required = False  # argparse thinks otherwise, and would ask for them


def _image_commands(add: Add) -> None:
    image = add("image", "", "look at modules and images, move them, and keep the store")
    actions = image.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)

    def action(name: str, target: str, summary: str, *, output: bool = False) -> argparse.ArgumentParser:
        command = actions.add_parser(name, help=summary, description=summary)
        command.set_defaults(target=target)
        if output:
            command.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print it")
        command.add_argument("-q", "--quiet", action="store_true", help="no progress")
        _config_option(command)
        return command

    summary = "show what a module can ask for, what it exports, who signed it, and how it would be run"
    inspect = action("inspect", "cli_image:inspect", summary, output=True)
    inspect.add_argument("module", metavar="MODULE|IMAGE", help="a .wasm file, or an image, pulled if it is not here")
    pull = action("pull", "cli_image_pull:pull", "bring images into the store, with their signatures", output=True)
    pull.add_argument("--policy", choices=("Always", "IfNotPresent"), default="Always", help="default: Always")
    pull.add_argument("images", metavar="IMAGE", nargs="+", help="such as ghcr.io/org/name:tag")
    push = action(
        "push", "cli_image_push:push", "put a .wasm file, or an image of the store, into a registry", output=True
    )
    push.add_argument(
        "--annotation", metavar="K=V", action="append", default=[], help="said of the image in its manifest; repeatable"
    )
    push.add_argument("module", metavar="MODULE|IMAGE", help="a .wasm file, or an image that is in the store")
    push.add_argument("image", metavar="IMAGE", nargs="?", help="the name it gets; for an image of the store its own")
    listing = action("ls", "cli_image_store:ls", "list the images of the store", output=True)
    listing.add_argument("--digests", action="store_true", help="whole digests")
    listing.add_argument("--all", action="store_true", help="signatures and modules without a name, too")
    verify = action("verify", "cli_image_verify:verify", "check who signed an image, and every byte of it", output=True)
    verify.add_argument(
        "--key", metavar="FILE", action="append", default=[], help="a public key, instead of the policy's; repeatable"
    )
    verify.add_argument("image", metavar="IMAGE", help="an image, pulled if it is not here")
    remove = action("rm", "cli_image_store:rm", "forget images; what no other image needs is deleted")
    remove.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or the beginning of a digest")
    collect = action("gc", "cli_image_store:gc", "delete what was not used for longest, down to the store's size")
    collect.add_argument(
        "--size", metavar="SIZE", help="how much may stay, such as 500Mi (default: modules.store_size)"
    )
    collect.add_argument("--dry-run", action="store_true", help="only say what would go")
    export = action("export", "cli_image_archive:export", "write images and their signatures into an archive")
    export.add_argument("-f", "--file", metavar="FILE", required=True, help="the archive, or - for standard output")
    export.add_argument("images", metavar="IMAGE", nargs="+", help="images of the store")
    bring = action("import", "cli_image_archive:bring", "read images and their signatures from an archive", output=True)
    bring.add_argument(
        "--name", metavar="REPOSITORY", help="for images that have only a tag in there (default: localhost/FILE's name)"
    )
    bring.add_argument("file", metavar="FILE", help="an OCI layout archive, or a directory, or - for standard input")


def _resource_commands(add: Add, server: _Parser) -> None:
    namespace = _Parser(add_help=False)
    namespace.add_argument(
        "-n", "--namespace", metavar="NAME", default="default", help="the namespace (default: default)"
    )

    def task_command(name: str, summary: str, takes: str = "a task, or job/NAME") -> argparse.ArgumentParser:
        command = add(name, f"cli_tasks:{name}", summary, server, namespace)
        command.add_argument("name", metavar="NAME", help=takes)
        return command

    apply = add("apply", "cli_resources:apply", "create or change what manifests describe", server, namespace)
    _files_option(apply, required=True)
    apply.add_argument("-o", "--output", choices=("name", "json", "yaml"), help="how to print what was applied")
    get = add("get", "cli_resources:get", "list tasks, proplets, jobs, or all", server, namespace)
    get.add_argument("kind", metavar="KIND", help=f"{_RESOURCE}, or all")
    get.add_argument("names", metavar="NAME", nargs="*", default=[], help="only these")
    get.add_argument("-o", "--output", choices=FORMS, default="table", help="how to print them (default: table)")
    get.add_argument("-w", "--watch", action="store_true", help="go on and print changes as they come")
    get.add_argument("-A", "--all-namespaces", action="store_true", help="of every namespace")
    get.add_argument("--no-headers", action="store_true", help="without the table's head")
    describe = add("describe", "cli_resources:describe", "show all of one task, proplet or job", server, namespace)
    describe.add_argument("kind", metavar="KIND", help=_RESOURCE)
    describe.add_argument("names", metavar="NAME", nargs="*", default=[], help="which")
    top = add("top", "cli_top:top", "show what tasks, or proplets, use", server, namespace)
    top.add_argument("kind", metavar="KIND", nargs="?", choices=TOP_KINDS, default="tasks", help="tasks or proplets")
    top.add_argument("-w", "--watch", action="store_true", help="go on (on a terminal it does without being told)")
    top.add_argument("--once", action="store_true", help="show it once and end (what it does in a pipe)")
    top.add_argument("--interval", metavar="TIME", default="2s", help="how often to look (default: 2s)")
    top.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print it")
    top.add_argument("-A", "--all-namespaces", action="store_true", help="of every namespace")
    delete = add(
        "delete", "cli_resources:delete", "delete tasks, proplets or jobs; what runs is stopped", server, namespace
    )
    delete.add_argument("kind", metavar="KIND", nargs="?", help=_RESOURCE)
    delete.add_argument("names", metavar="NAME", nargs="*", default=[], help="which")
    _files_option(delete, required=False)
    delete.add_argument("--all", action="store_true", help="all of that kind")
    delete.add_argument("--ignore-not-found", action="store_true", help="it is no failure if one is not there")
    task_command("start", "start a task, again if it has finished, or a job that waits")
    task_command("stop", "stop a task or a job")
    invoke = add("invoke", "cli_invoke:invoke", "call a latent task and print its result", server, namespace)
    invoke.add_argument("--env", metavar="K=V", action="append", default=[], help="a variable for it; repeatable")
    invoke.add_argument("--timeout", metavar="TIME", default="30s", help="how long to wait, at most 30s (default: 30s)")
    invoke.add_argument("name", metavar="NAME", help="the task")
    invoke.add_argument("args", metavar="ARGS", nargs="*", default=[], help="its inputs, instead of the task's own")
    logs = task_command("logs", "show what a task printed", "the task")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the task has ended")
    logs.add_argument("--tail", metavar="N", help="begin with the last N lines (default: all that are kept)")
    logs.add_argument("--since", metavar="TIME", help="begin with what was printed in the last TIME, like 10m")
    logs.add_argument("--timestamps", action="store_true", help="begin each line with the time of the device")
    wait = task_command(
        "wait", "wait for a task or a job", "a task, or job/NAME, federatedjob/NAME, traininground/NAME"
    )
    wait.add_argument("--for", dest="until", choices=WAITS, default="completed", help="for what (default: completed)")
    wait.add_argument("--timeout", metavar="TIME", default="30s", help="for how long (default: 30s)")


def _files_option(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "-f", "--filename", metavar="FILE", action="append", default=[], required=required,
        help="a manifest, a directory of them, or - for standard input; repeatable",
    )  # fmt: skip
