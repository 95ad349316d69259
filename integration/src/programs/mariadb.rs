//! MariaDB: a server that speaks first.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{Pod, Process, command, programs};

/// Its port.
pub const PORT: u16 = 3306;
/// A user with all rights, from everywhere.
pub const USER: &str = "weft";
/// That user's password.
pub const PASSWORD: &str = "weft";
/// A database that is there.
pub const DATABASE: &str = "shop";

/// Starts MariaDB in a pod; its files are in `dir`.
///
/// # Errors
/// When it does not come up.
pub fn start(pod: &Pod, dir: &Path) -> Result<Process> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let data = format!("--datadir={}", dir.join("data").display());
    let small = ["--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0"];
    command::output(
        Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--user=root"])
            .arg(&data)
            .args(small),
    )?;
    let users = dir.join("users.sql");
    fs::write(
        &users,
        format!(
            "CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO {USER}@'%';\nCREATE DATABASE {DATABASE};\n"
        ),
    )?;
    let mut server = pod.command("mariadbd");
    server
        .args(["--no-defaults", "--user=root", "--skip-name-resolve", "--bind-address=*"])
        .args(["--skip-log-bin", "--performance-schema=off", "--max-connections=2000"])
        // Tests that only wait for the greeting count as clients that broke off.
        .arg("--max-connect-errors=1000000")
        .arg(format!("--port={PORT}"))
        .arg(format!("--socket={}", dir.join("socket").display()))
        .arg(format!("--pid-file={}", dir.join("pid").display()))
        .arg(format!("--init-file={}", users.display()))
        .arg(&data)
        .args(small);
    let process = pod.spawn(server)?;
    programs::wait_listening(pod, &[PORT]).with_context(|| process.log_tail(20))?;
    Ok(process)
}
