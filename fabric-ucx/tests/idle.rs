//! The cost of idle endpoints: no CPU, little memory, few descriptors. Alone in its binary, because it measures the
//! process.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::time::Duration;

use thallus_fabric::Fabric;
use thallus_fabric_ucx::{UcxFabric, UcxOptions};

const PAIRS: usize = 50;

fn cpu_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for the answer.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) }, 0);
    // SAFETY: zeroed is a valid `rusage`, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    let duration = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn a_hundred_idle_endpoints_cost_little() {
    for transports in [None, Some("posix,self")] {
        let options = UcxOptions { transports: transports.map(Into::into), ..UcxOptions::default() };
        let fabric = UcxFabric::new(options).unwrap();
        let (memory, fds) = (resident_bytes(), descriptors());
        let mut ends = Vec::new();
        for _ in 0..PAIRS {
            let (mut one, mut other) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
            one.connect(&other.address()).unwrap();
            other.connect(&one.address()).unwrap();
            ends.extend([one, other]);
        }
        let mut tasks = Vec::new();
        for mut end in ends {
            tasks.push(tokio::spawn(async move {
                let mut completions = Vec::new();
                poll_fn(|cx| end.poll(cx, &mut completions)).await
            }));
        }
        // Time for the wire-up, and then an idle second.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let each = (resident_bytes() - memory) / (2 * PAIRS);
        let fds_each = (descriptors() - fds) as f64 / (2 * PAIRS) as f64;
        let before = cpu_time();
        tokio::time::sleep(Duration::from_secs(4)).await;
        let cpu = (cpu_time() - before) / 4;
        println!(
            "{transports:?}: per endpoint {} KiB resident, {fds_each} descriptors; {cpu:?} of CPU a second",
            each >> 10
        );
        assert!(cpu < Duration::from_millis(50), "100 idle endpoints took {cpu:?} of CPU in a second");
        assert!(each < 2 << 20, "an idle endpoint takes {each} bytes");
        assert!(fds_each < 20.0, "an idle endpoint takes {fds_each} descriptors");
        for task in tasks {
            assert!(!task.is_finished(), "an idle endpoint went down");
            task.abort();
            let _ = task.await;
        }
        assert!(descriptors() <= fds + 2, "descriptors leak: {} before, {} after", fds, descriptors());
    }
}
