"""The sides and how each is asked for a measurement."""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import tempfile
import venv

import card
import measure

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "target" / "peers"
SDCPP = "stable-diffusion-cpp-python==0.4.7"
# What stable-diffusion.cpp holds where the others hold bf16: half precision that every processor converts fast.
SDCPP_DTYPE = {"f32": "f32", "bf16": "f16", "f16": "f16"}
# Tasks whose result can be compared between precisions.
SINGLE = ("unet", "vae-decode", "vae-encode", "text")


@dataclasses.dataclass
class Row:
    model: str
    # process: prompt to PNG, the whole process. start: until its first step. busy: a picture beside other jobs.
    task: str
    size: int
    batch: int
    dtype: str
    # Of the adapter that is trained.
    rank: int = 8

    @property
    def whole(self):
        """A process is measured from outside, not the work inside it."""
        return self.task in ("process", "start") or (self.task == "busy" and self.model != "mini")


@dataclasses.dataclass
class Found:
    """A figure of one turn. Where the time was up, `seconds` is what was exceeded."""
    seconds: list
    processor_seconds: float | None = None
    mib: float | None = None
    own_mib: float | None = None
    bound: bool = False
    failed: str | None = None
    row: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Sides:
    scumble: str
    python: str
    folder: pathlib.Path
    threads: int = 2
    device: str = "cpu"
    compile: bool = False
    limit: float = 600
    steps: int = 20
    # What is known of the card, where rows are measured on one.
    card: dict = dataclasses.field(default_factory=dict)

    def turn(self, side, row, runs, last):
        """One measurement. `side`: ours, peer, peer-default (threads that spin as they like), peer-compiled, sdcpp."""
        find = self.process if row.whole else self.bench
        if row.task != "busy":
            return find(side, row, runs, last)
        with measure.Busy(os.cpu_count()):
            return find(side, row, runs, last)

    def environment(self, side):
        # Spinning threads lose badly on a machine that does anything else; passive ones cost an idle machine nothing.
        passive = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(self.threads)}
        untouched = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "KMP_", "GOMP_"))}
        return untouched | ({} if side == "peer-default" else passive)

    def bench(self, side, row, runs, last):
        """The work inside a process that is warm."""
        task = "generate" if row.task == "busy" else row.task
        options = ["--model", row.model, "--task", task, "--size", row.size, "--batch", row.batch, "--precision",
                   row.dtype, "--device", self.device, "--threads", self.threads, "--runs", runs]
        if row.rank != Row.rank:
            options += ["--rank", row.rank]
        if self.card:
            # A card chooses kernels in its first passes.
            options += ["--warmup", 3]
        if last and row.dtype != "f32" and row.task in SINGLE and side != "peer-compiled":
            options.append("--error")
        if side == "ours":
            command = [self.scumble, "bench", "--json", *options]
        else:
            compiles = self.compile or side == "peer-compiled"
            command = [self.python, "-B", HERE / "torch_side.py", *options] + ["--compile"] * compiles
        ended = measure.ended(command, self.environment(side), self.limit)
        # On a card its memory counts, which only they know themselves.
        mib, own_mib = (None, None) if self.card else (ended.mib, ended.own_mib)
        reports = [said for _, said in ended.said if "seconds" in said]
        if reports:
            said = reports[-1]
            return Found(said["runs"], said["processor_seconds"], said["peak_mib"], own_mib, row=said)
        if not ended.cut:
            return Found([], failed=f"{ended.complaint.strip() or ended.said[-1:]} (status {ended.code})")
        done = [said["run"] for _, said in ended.said if "run" in said]
        begun = [at for at, said in ended.said if "pass" in said]
        if done:
            return Found(done, mib=mib)
        if begun:
            return Found([ended.seconds - begun[-1]], mib=mib, bound=True)
        return Found([], failed=f"not ended after {self.limit:.0f} s")

    def process(self, side, row, runs, last):
        """A program from its start to its PNG, or to its first step, as often as there are runs."""
        start = row.task == "start"
        turns = []
        while len(turns) < runs and not any(found.bound or found.failed for found in turns):
            turns.append(self.picture(side, row, start))
        failed = next((found for found in turns if found.failed), None)
        if failed:
            return failed
        bound = any(found.bound for found in turns)
        middle = lambda values: statistics.median(values) if values else None  # noqa: E731
        known = {key: middle([found.row[key] for found in turns if key in found.row])
                 for key in ("start_s", "begin_s")}
        return Found([s for found in turns for s in found.seconds],
                     middle([found.processor_seconds for found in turns if found.processor_seconds is not None]),
                     max((found.mib for found in turns if found.mib), default=None),
                     max((found.own_mib for found in turns if found.own_mib), default=None), bound,
                     row=known)

    def picture(self, side, row, start):
        with tempfile.TemporaryDirectory() as out:
            command = self.drawing(side, row, pathlib.Path(out))
            two = lambda said: start and len(steps(said)) >= 2  # noqa: E731
            ended = measure.ended(command, self.environment(side), self.limit, two)
            drawn = any(file.stat().st_size for file in pathlib.Path(out).glob("*.png"))
        times = steps(ended.said)
        # What is not a step like the second is the start: loading, the prompt, and what the first step does once.
        known = {"start_s": 2 * times[0] - times[1]} if len(times) > 1 else {}
        known |= {"begin_s": at for at, what in ended.said if begins(what)}
        if ended.cut:
            return Found([ended.seconds], ended.processor_seconds, ended.mib, ended.own_mib, True, row=known)
        if start and "start_s" in known:
            return Found([known["start_s"]], row=known)
        if not drawn or ended.code:
            return Found([], failed=f"{ended.complaint.strip()} (status {ended.code})")
        return Found([ended.seconds], ended.processor_seconds, ended.mib, ended.own_mib, row=known)

    def drawing(self, side, row, out):
        model = self.model(side, row)
        measure.cached(model)
        common = ["--model", model, "--steps", self.steps, "--threads", self.threads]
        if side == "ours":
            size = f"{row.size}x{row.size}"
            return [self.scumble, "generate", "a lighthouse", *common, "--sampler", "dpmpp_2m", "--scheduler", "normal",
                    "--cfg", 7, "--seed", 1, "--size", size, "--dtype", row.dtype, "--device", self.device, "--out",
                    out, "--offline", "--json"]
        common += ["--size", row.size, "--out", out / "picture.png"]
        if side == "sdcpp":
            return [self.python, "-B", HERE / "sdcpp_process.py", *common]
        return [self.python, "-B", HERE / "torch_process.py", *common, "--precision", row.dtype, "--device",
                self.device] + ["--compile"] * self.compile

    def model(self, side, row):
        """The same files for every side; made once, with random weights."""
        if row.model == "mini":
            return ROOT / "sample-data" / "mini"
        if side == "sdcpp":
            path = self.folder / f"sd1-{SDCPP_DTYPE[row.dtype]}.safetensors"
            dtype, last = SDCPP_DTYPE[row.dtype], path
        else:
            path, dtype = self.folder / f"sd1-{row.dtype}", row.dtype
            last = path / "model_index.json"
        if not last.exists():
            subprocess.run([self.python, "-B", HERE / "make_model.py", path, dtype], check=True,
                           stderr=subprocess.DEVNULL)
        return path


def steps(said):
    """When denoising steps ended."""
    return [at for at, what in said if "step" in what or
            (what.get("event"), what.get("stage")) == ("advanced", "sample")]


def begins(what):
    """The first denoising step; ours says so before it reads the prompt, PyTorch's after."""
    return "begins" in what or (what.get("event"), what.get("stage")) == ("started", "sample")


def add_options(parser):
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile on the peers' side")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS",
                        help="for each measurement; what does not end is shown as more than that [600]")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of process and busy rows [20]")
    parser.add_argument("--python", help="a Python that has the peers already")
    parser.add_argument("--scumble", help="a program that is built already")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER,
                        help="for models with random weights, up to 9 GB [target/peers]")


def of(args):
    """Everything there is to be asked; without the card that was named, nothing is downloaded or built for it."""
    if not card.on(args.device):
        return Sides(args.scumble or build(), args.python or peers(), args.folder, args.threads, args.device,
                     args.compile, args.limit, args.steps)
    card.expected()
    python = args.python or peers()
    facts = card.measured(python, args.device)
    return Sides(args.scumble or build("--features", "cudnn"), python, args.folder, args.threads, args.device,
                 args.compile, args.limit, args.steps, facts)


def peers():
    python = FOLDER / "bin" / "python"
    if not python.exists():
        venv.create(FOLDER, with_pip=True)
    install(python, "-r", HERE / "requirements.txt")
    return str(python)


def install(python, *what):
    subprocess.run([python, "-m", "pip", "install", "-q", *what], check=True)


def build(*features):
    subprocess.run(["cargo", "build", "--release", "--bin", "scumble", *features], cwd=ROOT, check=True)
    return str(ROOT / "target" / "release" / "scumble")


def versions(python):
    """Of the peers that are installed."""
    ask = ("import importlib.metadata as m, json\n"
           "names = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}\n"
           "wanted = 'torch', 'diffusers', 'transformers', 'peft', 'stable-diffusion-cpp-python'\n"
           "print(json.dumps({n: names[n] for n in wanted if n in names}))")
    said = measure.ended([python, "-c", ask], os.environ, 60).said
    return said[-1][1] if said else {}
