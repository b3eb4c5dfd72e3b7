//! How many entries the maps of a running program have, for trials that run for long: nothing of bwmon itself asks.

use std::io;
use std::os::fd::AsRawFd;

use super::{BPF_MAP_GET_FD_BY_ID, BPF_MAP_GET_NEXT_KEY, BPF_OBJ_GET_INFO_BY_FD, BpfAttr, u32_at};
use nix::libc;

/// Where struct bpf_map_info has the size of a key and the most entries, and as much of it as has both.
const KEY_SIZE: usize = 8;
const MOST_ENTRIES: usize = 16;
const INFO_SIZE: usize = 20;

/// The number of entries of a hash map that has this id (`map_id` in /proc/PID/fdinfo). What programs write meanwhile may
/// count twice or not at all.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOENT where no map has the id, or what bpf(2) gives.
pub fn entries(id: u32) -> io::Result<usize> {
    let map = BpfAttr::default().push(id).open(BPF_MAP_GET_FD_BY_ID)?;
    let mut info = [0_u8; INFO_SIZE];
    let mut attr = BpfAttr::default();
    attr.push(map.as_raw_fd() as u32).push(INFO_SIZE as u32).push_pointer(info.as_mut_ptr());
    attr.call(BPF_OBJ_GET_INFO_BY_FD)?;
    let most = u32_at(&info, MOST_ENTRIES) as usize;
    let mut key = vec![0_u8; u32_at(&info, KEY_SIZE) as usize];
    let mut next = key.clone();
    for count in 0..most {
        let mut attr = BpfAttr::default();
        attr.push(map.as_raw_fd() as u32).push(0);
        attr.push_pointer(if count == 0 { std::ptr::null() } else { key.as_ptr() }).push_pointer(next.as_mut_ptr());
        match attr.call(BPF_MAP_GET_NEXT_KEY) {
            Ok(_) => std::mem::swap(&mut key, &mut next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::bpf::{Map, MapType};

    #[test]
    fn a_map_of_three_entries_has_three() {
        // Without the privileges there is no map.
        let Ok(map) = Map::<4, 8>::create(MapType::Hash, 100) else { return };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd.as_raw_fd())).unwrap();
        let id = info.lines().find_map(|line| line.strip_prefix("map_id:")).unwrap().trim().parse().unwrap();
        for key in 0..3_u32 {
            assert_eq!(entries(id).unwrap(), key as usize);
            map.update(&key.to_ne_bytes(), &[7; 8]).unwrap();
        }
        assert_eq!(entries(id).unwrap(), 3);
    }
}
