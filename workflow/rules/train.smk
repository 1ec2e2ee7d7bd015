# The grid: every run is checked before the first is trained, then each is a job of its own.

LIBRARY = [
    f"rankcollapse/{module}.py"
    for module in ("config", "data", "models", "feedback", "optim", "probes", "ranks", "training")
]


rule plan:
    """Check all runs and their data, and write the list of them. Nothing trains before this."""
    output:
        f"{RESULTS}/plan.csv",
    log:
        f"{RESULTS}/logs/plan.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        runs=[{"study": r.study, "arm": r.arm, **r.values()} for r in RUNS.values()],
        disk_mb=sum(STUDIES[r.study]["cost"]["disk_mb"] for r in RUNS.values()),
    script:
        "../scripts/plan.py"


rule train:
    """One run. It is retrained when its own config or the training code changes, and by nothing else."""
    input:
        ancient(rules.plan.output),
        code=LIBRARY,
    output:
        multiext(
            f"{RESULTS}/runs/{RUN_NAME}/",
            "config.json",
            "checkpoint.pt",
            "metrics.csv",
            "spectra.npz",
            "alignment.csv",
            "run.json",
        ),
    log:
        f"{RESULTS}/logs/train/{RUN_NAME}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{RUN_NAME}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: config.get("threads", 1)
    resources:
        gpu=lambda wildcards: int(bool(GPUS) and planned(wildcards).config.device != "cpu"),
        mem_mb=lambda wildcards: STUDIES[wildcards.study]["cost"]["mem_mb"],
        runtime=minutes,
    params:
        config=lambda wildcards: json.dumps(planned(wildcards).values()),
        out=lambda wildcards, output: os.path.dirname(output[0]),
        slots=config.get("gpu_slots", 1),
    shell:
        "echo {params.config:q} | python -m rankcollapse train - --out {params.out}"
        " --name {wildcards.study}/{wildcards.dataset}/{wildcards.arm}/seed{wildcards.seed}"
        " --threads {threads} --gpu-slots {params.slots} 2>&1 | tee {log:q} >&2"
