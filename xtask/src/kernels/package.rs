//! Kernels as Debian packages them: found by name, downloaded by apt, unpacked and never installed.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::sh;

/// The kernel for virtual machines: the same code, with fewer drivers.
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
pub(super) struct Package {
    /// Where it is unpacked.
    dir: PathBuf,
}

impl Package {
    /// The kernel itself.
    pub(super) fn image(&self) -> Result<PathBuf> {
        one_in(&self.dir.join("boot"), "vmlinuz-")
    }

    /// The directory with its modules and their index.
    pub(super) fn modules(&self) -> Result<PathBuf> {
        // A merged /usr, in newer releases.
        let places = ["usr/lib/modules", "lib/modules"].map(|place| self.dir.join(place));
        let place = places.iter().find(|place| place.is_dir()).context("the package has no modules")?;
        one_in(place, "")
    }
}

fn one_in(dir: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("there is no {prefix}* in {}", dir.display()))
}

/// The newest kernel whose package's name begins so; downloads it unless it is in `dir` already.
pub(super) fn get(prefix: &str, dir: &Path) -> Result<Package> {
    let name = match newest(prefix)? {
        Some(name) => name,
        None => {
            // The lists may never have been fetched.
            sh::output(&mut sh::command("apt-get", &["update", "-qq"]))?;
            newest(prefix)?.with_context(|| format!("no package {prefix}*{FLAVOUR} in this machine's apt sources"))?
        }
    };
    let unpacked = dir.join(&name);
    if !unpacked.is_dir() {
        download(&name, dir, &unpacked).with_context(|| format!("cannot get {name}"))?;
    }
    Ok(Package { dir: unpacked })
}

fn newest(prefix: &str) -> Result<Option<String>> {
    let pattern = format!("^{}", prefix.replace('.', "\\."));
    let listed = sh::output(&mut sh::command("apt-cache", &["search", "--names-only", &pattern]))?;
    Ok(pick_newest(prefix, listed.lines()))
}

/// Lines are `NAME - DESCRIPTION`.
fn pick_newest<'a>(prefix: &str, lines: impl Iterator<Item = &'a str>) -> Option<String> {
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| name.starts_with(prefix) && name.ends_with(FLAVOUR))
        .max_by(|left, right| by_numbers(left, right))
        .map(str::to_owned)
}

/// `6.12.9` before `6.12.57`.
fn by_numbers(left: &str, right: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(left).cmp(&numbers(right))
}

fn download(name: &str, dir: &Path, unpacked: &Path) -> Result<()> {
    println!("downloading {name}");
    let work = dir.join(format!("{name}.part"));
    fs::remove_dir_all(&work).ok();
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    // apt would else complain that its own user may not write here.
    let mut apt = sh::command("apt-get", &["download", "-qq", "-o", "APT::Sandbox::User=root", name]);
    sh::output(apt.current_dir(&work))?;
    let package = one_in(&work, "linux-image-")?;
    if package.extension().is_none_or(|extension| extension != "deb") {
        bail!("apt left {}, which is no package", package.display());
    }
    let content = work.join("content");
    sh::output(sh::command("dpkg-deb", &["-x"]).arg(&package).arg(&content))?;
    // In one step, so that what is there is always whole.
    fs::rename(&content, unpacked).with_context(|| format!("cannot move {}", content.display()))?;
    fs::remove_dir_all(&work).ok();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_taken_by_number_and_of_the_right_flavour() {
        let listed = "\
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.9+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.118+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.12.101+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)";
        let newest = pick_newest("linux-image-6.12.", listed.lines());
        assert_eq!(newest.as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(pick_newest("linux-image-6.1.0-", listed.lines()), None);
    }
}
