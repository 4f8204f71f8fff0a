//! What the figures were measured on.

/// Processor, cores, memory and kernel, as far as Linux tells.
pub(crate) fn describe() -> String {
    let field = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(unknown);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| unknown());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_else(|_| unknown());
    let load = load.split_whitespace().next().unwrap_or_default();
    format!(
        "{processor}, {cores} cores, memory {memory}, Linux {}, load average {load}",
        kernel.trim()
    )
}
