# The grid: each run is a job of its own. All are checked before the first one starts, see onstart in the Snakefile.

LIBRARY = [
    f"rankcollapse/{module}.py"
    for module in ("config", "data", "models", "feedback", "optim", "probes", "ranks", "training")
]


rule plan:
    """The list of the runs. Training does not wait for it, so that a longer list retrains nothing."""
    output:
        f"{RESULTS}/plan.csv",
    log:
        f"{RESULTS}/logs/plan.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        runs=[{"study": r.study, "arm": r.arm, **r.values()} for r in RUNS.values()],
    script:
        "../scripts/plan.py"


rule train:
    """One run. It is retrained when its own config or the training code changes, and by nothing else."""
    input:
        LIBRARY,
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
